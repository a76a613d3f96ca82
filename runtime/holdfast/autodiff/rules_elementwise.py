"""Gradients of the elementwise arithmetic with broadcasting: Add, Sub, Mul, Div, Neg, Pow, Sum, Mean.

Source: the derivatives of elementary calculus; a broadcast operand gets the sum over its copies.
"""

from __future__ import annotations

from onnx import TensorProto

from holdfast.autodiff.rule import GradientRule, NodeView, one_output, reduced
from holdfast.autodiff.writer import GraphWriter


def _add(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [reduced(view, out, dy, index) if view.wants(index) else None for index in range(len(view.inputs))]


def _sub(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    da = reduced(view, out, dy, 0) if view.wants(0) else None
    db = out.node("Neg", [reduced(view, out, dy, 1)]) if view.wants(1) else None
    return [da, db]


def _mul(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    a, b = view.inputs
    da = reduced(view, out, out.node("Mul", [dy, b]), 0) if view.wants(0) else None
    db = reduced(view, out, out.node("Mul", [dy, a]), 1) if view.wants(1) else None
    return [da, db]


def _div(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = A / B: dA = dY / B, dB = -dY Y / B."""
    over = out.node("Div", [dy, view.inputs[1]])
    da = reduced(view, out, over, 0) if view.wants(0) else None
    db = None
    if view.wants(1):
        db = out.node("Neg", [reduced(view, out, out.node("Mul", [over, view.outputs[0]]), 1)])
    return [da, db]


def _neg(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Neg", [dy])]


def _pow(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Y = A^B. The exponent's gradient exists where A > 0; a base of 0 counts as 0 there, as in PyTorch."""
    a, b = view.inputs
    da = db = None
    if view.wants(0):
        slope = _power_slope(view, out, a, b)
        da = reduced(view, out, out.node("Mul", [dy, slope]), 0)
    if view.wants(1):
        positive = out.node("Greater", [a, out.scalar(0.0)])
        log = out.node("Log", [out.node("Where", [positive, a, out.scalar(1.0)])])
        db = reduced(view, out, out.node("Mul", [out.node("Mul", [dy, view.outputs[0]]), log]), 1)
    return [da, db]


def _power_slope(view: NodeView, out: GraphWriter, a: str, b: str) -> str:
    """B A^(B-1); the common square without a power."""
    known = view.constants.get(b)
    if known is not None and known.size == 1 and known.item() == 2:
        return out.node("Add", [a, a])
    exponent = out.node("Cast", [b], to=int(TensorProto.FLOAT))
    lower = out.node("Pow", [a, out.node("Sub", [exponent, out.scalar(1.0)])])
    return out.node("Mul", [exponent, lower])


def _mean(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    share = out.node("Mul", [dy, out.scalar(1.0 / len(view.inputs))])
    return [reduced(view, out, share, index) if view.wants(index) else None for index in range(len(view.inputs))]


RULES = (
    GradientRule("Add", "dA = sum(dY), dB = sum(dY) over broadcast axes", one_output(_add)),
    GradientRule("Sub", "dA = sum(dY), dB = -sum(dY) over broadcast axes", one_output(_sub)),
    GradientRule("Mul", "dA = sum(dY B), dB = sum(dY A) over broadcast axes", one_output(_mul)),
    GradientRule("Div", "dA = sum(dY / B), dB = -sum(dY Y / B) over broadcast axes", one_output(_div)),
    GradientRule("Neg", "dX = -dY", one_output(_neg)),
    GradientRule("Pow", "dA = sum(dY B A^(B-1)), dB = sum(dY Y log A) over broadcast axes", one_output(_pow)),
    GradientRule("Sum", "dX_i = sum(dY) over broadcast axes", one_output(_add)),
    GradientRule("Mean", "dX_i = sum(dY) / n over broadcast axes", one_output(_mean)),
)
