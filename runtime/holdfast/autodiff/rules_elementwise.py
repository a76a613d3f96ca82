"""Gradients of the elementwise arithmetic with broadcasting: Add, Sub, Mul."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.autodiff.rule import GradientRule, NodeView, reduce_to_shape
from holdfast.autodiff.writer import GraphWriter


def _add(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    dy = gradients[0]
    if dy is None:
        return [None, None]
    return [_reduced(view, out, dy, index) if view.wants(index) else None for index in (0, 1)]


def _sub(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    dy = gradients[0]
    if dy is None:
        return [None, None]
    da = _reduced(view, out, dy, 0) if view.wants(0) else None
    db = out.node("Neg", [_reduced(view, out, dy, 1)]) if view.wants(1) else None
    return [da, db]


def _mul(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    dy = gradients[0]
    if dy is None:
        return [None, None]
    found: list[str | None] = []
    for index, other in ((0, view.inputs[1]), (1, view.inputs[0])):
        found.append(_reduced(view, out, out.node("Mul", [dy, other]), index) if view.wants(index) else None)
    return found


def _reduced(view: NodeView, out: GraphWriter, value: str, index: int) -> str:
    return reduce_to_shape(out, value, view.output_shape(), view.input_shape(index))


RULES = (
    GradientRule("Add", "dA = sum(dY), dB = sum(dY) over broadcast axes", _add),
    GradientRule("Sub", "dA = sum(dY), dB = -sum(dY) over broadcast axes", _sub),
    GradientRule("Mul", "dA = sum(dY B), dB = sum(dY A) over broadcast axes", _mul),
)
