"""Gradients of operators that move values without changing them: Identity, Reshape, Flatten."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.autodiff.rule import GradientRule, NodeView
from holdfast.autodiff.writer import GraphWriter


def _identity(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    return [gradients[0]]


def _reshape(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    """The gradient takes the static shape of the input back; the shape operand has none."""
    rest: list[str | None] = [None] * (len(view.inputs) - 1)
    dy = gradients[0]
    if dy is None:
        return [None, *rest]
    return [out.node("Reshape", [dy, out.integers(*view.input_shape(0))]), *rest]


RULES = (
    GradientRule("Identity", "dX = dY", _identity),
    GradientRule("Reshape", "dX = reshape(dY, shape of X)", _reshape, constant_inputs=(1,)),
    GradientRule("Flatten", "dX = reshape(dY, shape of X)", _reshape),
)
