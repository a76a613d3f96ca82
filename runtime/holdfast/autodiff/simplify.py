"""Rewrites graphs into ones that compute the same with less: nodes that change nothing, and poolings before Relu.

Rules write what their formula says and leave it to this pass to see that a factor is 1, that two transposes cancel, or
that a reshape is reshaped again. Every rewriting here is exact, bit for bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from holdfast.autodiff.reading import ForwardGraph
from holdfast.autodiff.writer import names_read

Constants = Mapping[str, NDArray[np.generic]]
# operator -> the value of a scalar operand that changes nothing; the others may have it in the second place only
_NEUTRAL = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0, "Pow": 1.0}
_COMMUTATIVE = ("Add", "Mul")
BEFORE = ".before_relu"


def pool_before_relu(forward: ForwardGraph) -> ForwardGraph:
    """Relu then MaxPool in the other order: the maximum of rectified values is the rectified maximum.

    So that fewer elements are rectified, forwards and backwards. Gradients are the same: where a window's maximum is
    above 0, its place is the same, and nothing passes where it is not.
    """
    uses = Counter(name for node in forward.nodes for name in names_read(node))
    pools = {node.input[0]: node for node in forward.nodes if node.op_type == "MaxPool" and len(node.output) == 1}
    swapped = {
        node.output[0]: pools[node.output[0]]
        for node in forward.nodes
        if node.op_type == "Relu" and node.output[0] in pools and uses[node.output[0]] == 1
    }
    nodes: list[NodeProto] = []
    shapes, types = dict(forward.shapes), dict(forward.element_types)
    for node in forward.nodes:
        if node.op_type == "Relu" and node.output[0] in swapped:
            continue
        if not (node.op_type == "MaxPool" and node.input[0] in swapped):
            nodes.append(node)
            continue
        relu = next(each for each in forward.nodes if node.input[0] in each.output)
        value, between = node.output[0], node.output[0] + BEFORE
        pool = NodeProto.FromString(node.SerializeToString())
        pool.input[0], pool.output[0] = relu.input[0], between
        nodes += [pool, helper.make_node("Relu", [between], [value], name=value)]
        shapes[between], types[between] = shapes[value], types[value]
    return replace(forward, nodes=tuple(nodes), shapes=shapes, element_types=types) if swapped else forward


def without_redundant(nodes: Sequence[NodeProto], constants: Constants, outputs: Collection[str]) -> list[NodeProto]:
    """The nodes without those that change nothing; nodes that nobody reads any more stay.

    Args:
        nodes: in order of execution; not modified.
        constants: values that are known.
        outputs: names that must stay. So do names that are read inside the bodies of If, Loop and Scan.
    """
    fixed = {*outputs, *(name for node in nodes for name in names_read(node) - set(node.input))}
    instead: dict[str, str] = {}
    makers: dict[str, NodeProto] = {}
    kept = []
    for node in nodes:
        if any(name in instead for name in node.input):
            node = NodeProto.FromString(node.SerializeToString())
            node.input[:] = [instead.get(name, name) for name in node.input]
        node = _shorter(node, makers, constants)
        same = _same_value(node, makers, constants)
        if same is not None and node.output[0] not in fixed:
            instead[node.output[0]] = same
            continue
        makers.update(dict.fromkeys(node.output, node))
        kept.append(node)
    return kept


def _same_value(node: NodeProto, makers: Mapping[str, NodeProto], constants: Constants) -> str | None:
    """The value that the node passes on unchanged; None: it does something."""
    names = node.input
    if node.op_type == "Identity" or (node.op_type == "Sum" and len(names) == 1):
        return names[0]
    if node.op_type in _NEUTRAL and len(names) == 2:
        if _is_scalar(constants.get(names[1]), _NEUTRAL[node.op_type]):
            return names[0]
        if node.op_type in _COMMUTATIVE and _is_scalar(constants.get(names[0]), _NEUTRAL[node.op_type]):
            return names[1]
    if node.op_type == "Neg" and names[0] in makers and makers[names[0]].op_type == "Neg":
        return makers[names[0]].input[0]
    order = _order(node)
    return names[0] if order is not None and order == sorted(order) else None


def _shorter(node: NodeProto, makers: Mapping[str, NodeProto], constants: Constants) -> NodeProto:
    """The node reading what is behind a reshape or transpose that it undoes or overrides."""
    before = makers.get(node.input[0]) if node.input else None
    if before is None or before.op_type != node.op_type:
        return node
    if node.op_type == "Reshape":
        shape = constants.get(node.input[1])
        if shape is None or not np.all(shape):  # a 0 stands for a size of what it reads
            return node
        return _reading(node, before.input[0])
    first, second = _order(before), _order(node)
    if first is None or second is None:
        return node
    shorter = _reading(node, before.input[0])
    del shorter.attribute[:]
    shorter.attribute.append(helper.make_attribute("perm", [first[axis] for axis in second]))
    return shorter


def _reading(node: NodeProto, value: str) -> NodeProto:
    copy = NodeProto.FromString(node.SerializeToString())
    copy.input[0] = value
    return copy


def _order(node: NodeProto) -> list[int] | None:
    """The permutation of a Transpose that says it."""
    if node.op_type != "Transpose":
        return None
    return next((list(each.ints) for each in node.attribute if each.name == "perm"), None)


def _is_scalar(value: NDArray[np.generic] | None, wanted: float) -> bool:
    """A scalar never stretches the other operand."""
    return value is not None and value.shape == () and value.dtype.kind == "f" and value.item() == wanted
