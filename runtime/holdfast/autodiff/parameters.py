"""Which initializers are parameters, which of them learn, and that no two of them are one by accident.

Why un-sharing: exporters and optimizers merge initializers of equal value. Two freshly made normalisation layers come
out with one common scale, training then ties what the author never tied, and the gradient is wrong by 100 %. The model
alone can't tell an accident from intention (an embedding shared with the output layer), so a trainable initializer that
is read in more than one place is refused unless it is declared as tied, or the accident is undone with
`unshare_parameters` before the model is served.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fnmatch import fnmatchcase

import onnx
from onnx import NodeProto

from holdfast.autodiff.reading import ForwardGraph, parameters_of, parse_model
from holdfast.autodiff.registry import rule_for
from holdfast.autodiff.writer import names_read
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout

ALL = "all"


def layout_of(model: onnx.ModelProto, trainable: Collection[str]) -> FlatLayout:
    """The flat layout of a model's parameters, in the order of its initializers."""
    shapes = [(tensor.name, tuple(tensor.dims)) for tensor in parameters_of(model)]
    return FlatLayout.from_shapes(shapes, trainable=trainable)


def choose_trainable(forward: ForwardGraph, parameters: Sequence[str], patterns: str | Sequence[str]) -> list[str]:
    """The parameters that learn, in layout order.

    Args:
        parameters: names of all parameters of the model.
        patterns: "all", or shell patterns ("head.*"). "all" leaves out what the logits don't depend on and what is
            only read where a rule says that it is a constant by nature (the shape of a Reshape, a running mean).

    Raises: AutodiffError: a pattern fits no parameter, or one that the logits don't depend on; or nothing is left.
    """
    live = [name for name in parameters if name in forward.initializers]
    if patterns == ALL:
        chosen = [name for name in live if not _is_constant(forward, name)]
    else:
        chosen = _matching(parameters, [patterns] if isinstance(patterns, str) else patterns)
        unread = [name for name in chosen if name not in live]
        if unread:
            raise AutodiffError(f"the logits don't depend on {unread[0]!r}; leave it out of the trainable parameters")
    if not chosen:
        raise AutodiffError("the model has no trainable parameter: no float32 initializer of rank 1 or more is read")
    return chosen


def check_not_shared(forward: ForwardGraph, trainable: Iterable[str], tied: Sequence[str]) -> None:
    """Raise AutodiffError for a trainable parameter with several readers, unless a pattern in `tied` declares it."""
    uses = _uses(forward.nodes)
    for name in trainable:
        if uses[name] > 1 and not any(fnmatchcase(name, pattern) for pattern in tied):
            raise AutodiffError(
                f"parameter {name!r} is read in {uses[name]} places; exporters merge equal values by accident: "
                "declare it as tied if that is meant, or pass the model through unshare_parameters before serving it"
            )


def unshare_parameters(model_bytes: bytes, *, tied: Sequence[str] = ()) -> bytes:
    """Give every further reader of a parameter a copy of its own, named `<name>.2`, `<name>.3`, ...

    The model computes the same as before, and its parameters can then learn apart. Parameters that fit a pattern in
    `tied` stay shared. Returns the bytes as given if nothing was shared.
    """
    model = parse_model(model_bytes)
    parameters = {tensor.name: tensor for tensor in parameters_of(model)}
    taken = {*parameters, *(value for node in model.graph.node for value in (*node.input, *node.output))}
    seen: Counter[str] = Counter()
    copies = []
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name not in parameters or any(fnmatchcase(name, pattern) for pattern in tied):
                continue
            seen[name] += 1
            if seen[name] == 1:
                continue
            copy = onnx.TensorProto.FromString(parameters[name].SerializeToString())
            copy.name = _free_name(name, seen[name], taken)
            taken.add(copy.name)
            node.input[index] = copy.name
            copies.append(copy)
    if not copies:
        return model_bytes
    model.graph.initializer.extend(copies)
    return model.SerializeToString()


def _matching(parameters: Sequence[str], patterns: Sequence[str]) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in parameters):
            known = ", ".join(parameters[:12]) + (" ..." if len(parameters) > 12 else "")
            raise AutodiffError(f"trainable pattern {pattern!r} fits no parameter; the model has: {known}")
    return [name for name in parameters if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _is_constant(forward: ForwardGraph, name: str) -> bool:
    """Whether every reader takes it where its rule has no gradient. A reader without a rule counts as a real use."""
    for node in forward.nodes:
        rule = rule_for(node)
        constant = () if rule is None else rule.constant_inputs
        if any(read == name and index not in constant for index, read in enumerate(node.input)):
            return False
        if name not in node.input and name in names_read(node):  # inside a branch or loop
            return False
    return True


def _uses(nodes: Sequence[NodeProto]) -> Counter[str]:
    uses = Counter(name for node in nodes for name in node.input)
    for node in nodes:
        uses.update(names_read(node) - set(node.input))
    return uses


def _free_name(name: str, number: int, taken: Collection[str]) -> str:
    while f"{name}.{number}" in taken:
        number += 1
    return f"{name}.{number}"
