"""Gradients of operators that choose between values: Where, Clip, Min, Max.

Source: the gradient follows the chosen value. Where several are equal, Min and Max share it among them (the
subgradient that PyTorch takes for maximum), and Clip lets it pass at its bounds.
"""

from __future__ import annotations

from holdfast.autodiff.rule import GradientRule, NodeView, as_float, kept_where, one_output, reduced
from holdfast.autodiff.writer import GraphWriter


def _where(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    condition = view.inputs[0]
    da = reduced(view, out, kept_where(out, condition, dy), 1) if view.wants(1) else None
    db = reduced(view, out, kept_where(out, out.node("Not", [condition]), dy), 2) if view.wants(2) else None
    return [None, da, db]


def _clip(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """X was not changed iff Y equals X: one comparison instead of two and an And."""
    return [kept_where(out, out.node("Equal", [view.inputs[0], view.outputs[0]]), dy)]


def _extreme(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    masks = [as_float(out, out.node("Equal", [name, view.outputs[0]])) for name in view.inputs]
    share = dy if len(masks) == 1 else out.node("Div", [dy, out.node("Sum", masks)])
    return [
        reduced(view, out, out.node("Mul", [share, mask]), index) if view.wants(index) else None
        for index, mask in enumerate(masks)
    ]


RULES = (
    GradientRule("Where", "dA = sum(dY where C), dB = sum(dY where not C)", one_output(_where), constant_inputs=(0,)),
    GradientRule("Clip", "dX = dY where min <= X <= max, else 0", one_output(_clip), constant_inputs=(1, 2)),
    GradientRule("Min", "dX_i = sum(dY [X_i = Y] / number of equals)", one_output(_extreme)),
    GradientRule("Max", "dX_i = sum(dY [X_i = Y] / number of equals)", one_output(_extreme)),
)
