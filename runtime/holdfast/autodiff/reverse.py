"""The reverse pass: from the gradient of the logits back to the gradients of whatever is wanted.

Reverse-mode differentiation by source transformation (Griewank and Walther 2008, chapter 3): nodes are visited
backwards, each rule emits its input gradients, and a value that is read several times gets the sum of what flows back.
The pass stops by itself at nodes that nothing wanted feeds, so a short trainable list makes a short graph.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from onnx import NodeProto, TensorProto

from holdfast.autodiff.lowerings import Lowerings
from holdfast.autodiff.reading import ForwardGraph, node_label
from holdfast.autodiff.registry import rule_for
from holdfast.autodiff.rule import OWN_STEP_GRAPH, NodeView, Rows
from holdfast.autodiff.writer import GraphWriter, names_read
from holdfast.errors import AutodiffError

QUANTISERS = ("QuantizeLinear", "DynamicQuantizeLinear")
FLOATING = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


@dataclass(frozen=True, slots=True)
class Modes:
    """How the forward pass differs from serving: `rows` for statistics of the batch, `dropout` for dropping units."""

    rows: Rows | None = None
    dropout: bool = False
    lowerings: Lowerings | None = None  # None: by rule


AS_SERVED = Modes()


def active_nodes(forward: ForwardGraph, wanted: Collection[str]) -> list[NodeProto]:
    """The nodes that something wanted feeds, in forward order; gradients pass through exactly these."""
    return _activity(forward, wanted)[0]


def nodes_without_rule(forward: ForwardGraph, wanted: Collection[str]) -> list[NodeProto]:
    """The active nodes that no gradient can pass."""
    return [node for node in active_nodes(forward, wanted) if rule_for(node) is None]


def check_rules(forward: ForwardGraph, wanted: Collection[str]) -> None:
    """Raise AutodiffError naming every node that stands between the logits and what is wanted."""
    nodes = active_nodes(forward, wanted)
    narrow = [node for node in nodes if node.op_type != "Cast" and not _is_float32(forward, node)]
    if narrow:
        raise AutodiffError(
            f"node {node_label(narrow[0])} does not compute in float32; gradients pass only float32: export the model "
            "in it, or make fewer parameters trainable"
        )
    active = {name for node in nodes for name in node.output} | set(wanted)
    rounded = [node for node in forward.nodes if node.op_type in QUANTISERS and not active.isdisjoint(node.input)]
    if rounded:
        raise AutodiffError(
            f"node {node_label(rounded[0])} makes integers, behind which every gradient is 0; train the model before "
            "it is quantised, or make fewer parameters trainable"
        )
    missing = [node for node in nodes if rule_for(node) is None]
    if not missing:
        return
    named = ", ".join(node_label(node) for node in missing[:8]) + (" ..." if len(missing) > 8 else "")
    raise AutodiffError(
        f"no gradient rule for {len(missing)} node(s): {named}; "
        "either make fewer parameters trainable, so that gradients stop behind these nodes, "
        f"or {OWN_STEP_GRAPH}"
    )


def emit_forward(
    forward: ForwardGraph, out: GraphWriter, wanted: Collection[str], modes: Modes = AS_SERVED
) -> dict[str, NodeView]:
    """Append the forward pass; nodes on the way of a gradient are emitted the way their rules want.

    Returns: by first output, what each active node saved for the way back, for `emit_gradients`.
    Raises: AutodiffError: a node on the way has no rule, or not in this form.
    """
    check_rules(forward, wanted)
    nodes, active = _activity(forward, wanted)
    passed = {_key(node) for node in nodes}
    views = {}
    for node in forward.nodes:
        if _key(node) not in passed:
            out.copy([node])
            continue
        rule = rule_for(node)
        if rule is None:
            raise AssertionError("checked above")
        view = NodeView(
            node=node,
            shapes=forward.shapes,
            wanted=tuple(name in active and i not in rule.constant_inputs for i, name in enumerate(node.input)),
            constants=forward.constants,
            rows=modes.rows,
            dropout=modes.dropout,
            lowerings=modes.lowerings or Lowerings(),
        )
        if rule.forward is None:
            out.copy([node])
        else:
            view = replace(view, saved=rule.forward(view, out))
        views[_key(node)] = view
    return views


def emit_gradients(
    forward: ForwardGraph, out: GraphWriter, seed: str, wanted: Collection[str], views: dict[str, NodeView]
) -> dict[str, str]:
    """Append the reverse pass.

    Args:
        seed: name of d loss / d logits, of the shape of the logits.
        wanted: parameters or data inputs.
        views: from `emit_forward` with the same `wanted`.

    Returns: name of the gradient of each wanted value that the loss depends on.
    """
    nodes, active = _activity(forward, wanted)
    flowing: dict[str, list[str]] = {forward.logits: [seed]}
    for node in reversed(nodes):
        gradients = [_collected(out, flowing.pop(name, [])) for name in node.output]
        if all(gradient is None for gradient in gradients):
            continue
        rule = rule_for(node)
        if rule is None:
            raise AssertionError("emit_forward has checked it")
        backward = rule.backward(views[_key(node)], out, gradients)
        for name, gradient in zip(node.input, backward, strict=True):
            if gradient is not None and name in active:
                flowing.setdefault(name, []).append(gradient)
    collected = {name: _collected(out, flowing.get(name, [])) for name in wanted}
    return {name: gradient for name, gradient in collected.items() if gradient is not None}


def _key(node: NodeProto) -> str:
    """The first value that a node makes; optional outputs may be left out."""
    return next(name for name in node.output if name)


def _is_float32(forward: ForwardGraph, node: NodeProto) -> bool:
    types = [forward.element_types.get(name) for name in node.output if name]
    return all(each == TensorProto.FLOAT for each in types if each in FLOATING)


def _activity(forward: ForwardGraph, wanted: Collection[str]) -> tuple[list[NodeProto], set[str]]:
    """Nodes and values that vary with what is wanted. Only float values count: a shape or an index has no gradient."""
    active = set(wanted)
    nodes = []
    for node in forward.nodes:
        floats = [name for name in node.output if forward.element_types.get(name) in FLOATING]
        if floats and not active.isdisjoint(names_read(node)):
            active.update(floats)
            nodes.append(node)
    return nodes, active


def _collected(out: GraphWriter, parts: list[str]) -> str | None:
    """The sum of what flows back to one value from all of its readers."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return out.node("Sum", parts)
