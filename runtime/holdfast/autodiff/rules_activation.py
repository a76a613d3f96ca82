"""Gradients of the activation functions: Relu."""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.autodiff.rule import GradientRule, NodeView
from holdfast.autodiff.writer import GraphWriter


def _relu(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    """The subgradient at 0 is taken as 0, as everywhere (Glorot et al. 2011; PyTorch and TensorFlow do the same).

    It reads Y instead of X (Y > 0 iff X > 0), so that X need not be kept in memory for the backward pass.
    """
    dy = gradients[0]
    if dy is None:
        return [None]
    positive = out.node("Greater", [view.outputs[0], out.scalar(0.0)])
    return [out.node("Where", [positive, dy, out.scalar(0.0)])]


RULES = (GradientRule("Relu", "dX = dY where Y > 0, else 0", _relu),)
