"""The reverse pass: from the gradient of the logits back to the gradients of whatever is wanted.

Reverse-mode differentiation by source transformation (Griewank and Walther 2008, chapter 3): nodes are visited
backwards, each rule emits its input gradients, and a value that is read several times gets the sum of what flows back.
The pass stops by itself at nodes that nothing wanted feeds, so a short trainable list makes a short graph.
"""

from __future__ import annotations

from collections.abc import Collection

from onnx import NodeProto, TensorProto

from holdfast.autodiff.reading import ForwardGraph, names_read, node_label
from holdfast.autodiff.registry import RULES, rule_for
from holdfast.autodiff.rule import NodeView
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError


def active_nodes(forward: ForwardGraph, wanted: Collection[str]) -> list[NodeProto]:
    """The nodes that something wanted feeds, in forward order; gradients pass through exactly these."""
    return _activity(forward, wanted)[0]


def nodes_without_rule(forward: ForwardGraph, wanted: Collection[str]) -> list[NodeProto]:
    """The active nodes that no gradient can pass."""
    return [node for node in active_nodes(forward, wanted) if rule_for(node) is None]


def check_rules(forward: ForwardGraph, wanted: Collection[str]) -> None:
    """Raise AutodiffError naming every node that stands between the logits and what is wanted."""
    missing = nodes_without_rule(forward, wanted)
    if not missing:
        return
    named = ", ".join(node_label(node) for node in missing[:8]) + (" ..." if len(missing) > 8 else "")
    raise AutodiffError(
        f"no gradient rule for {len(missing)} node(s): {named}; rules exist for {', '.join(sorted(RULES))}. "
        "Either make fewer parameters trainable, so that gradients stop behind these nodes, "
        "or bring a training-step graph of your own"
    )


def emit_gradients(forward: ForwardGraph, out: GraphWriter, seed: str, wanted: Collection[str]) -> dict[str, str]:
    """Append the reverse pass.

    Args:
        seed: name of d loss / d logits, float32[batch, classes].
        wanted: parameters or data inputs.

    Returns: name of the gradient of each wanted value that the loss depends on.
    Raises: AutodiffError: a node on the way has no rule.
    """
    check_rules(forward, wanted)
    nodes, active = _activity(forward, wanted)
    flowing: dict[str, list[str]] = {forward.logits: [seed]}
    for node in reversed(nodes):
        gradients = [_collected(out, flowing.pop(name, [])) for name in node.output]
        if all(gradient is None for gradient in gradients):
            continue
        rule = rule_for(node)
        if rule is None:
            raise AssertionError("checked above")
        view = NodeView(
            node=node,
            shapes=forward.shapes,
            wanted=tuple(name in active and i not in rule.constant_inputs for i, name in enumerate(node.input)),
        )
        for name, gradient in zip(node.input, rule.backward(view, out, gradients), strict=True):
            if gradient is not None and name in active:
                flowing.setdefault(name, []).append(gradient)
    collected = {name: _collected(out, flowing.get(name, [])) for name in wanted}
    return {name: gradient for name, gradient in collected.items() if gradient is not None}


def _activity(forward: ForwardGraph, wanted: Collection[str]) -> tuple[list[NodeProto], set[str]]:
    """Nodes and values that vary with what is wanted. Only float values count: a shape or an index has no gradient."""
    active = set(wanted)
    nodes = []
    for node in forward.nodes:
        floats = [name for name in node.output if forward.element_types.get(name) == TensorProto.FLOAT]
        if floats and not active.isdisjoint(names_read(node)):
            active.update(floats)
            nodes.append(node)
    return nodes, active


def _collected(out: GraphWriter, parts: list[str]) -> str | None:
    """The sum of what flows back to one value from all of its readers."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return out.node("Sum", parts)
