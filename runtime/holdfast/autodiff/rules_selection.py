"""Gradients of operators that choose places by what the values are: TopK, ReverseSequence.

Source: within a choice the operator is a linear map of zeros and ones, so its transpose puts each gradient back at the
place its value was taken from; the places themselves have slope 0 wherever they have one.
"""

from __future__ import annotations

from holdfast.autodiff.rule import GradientRule, NodeView, one_output, zeros
from holdfast.autodiff.writer import GraphWriter


def _top_k(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    target = zeros(out, view.input_shape(0))
    return [out.node("ScatterElements", [target, view.outputs[1], dy], axis=view.axis(-1))]


def _reverse_sequence(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Its own inverse."""
    axes = {"batch_axis": view.integer("batch_axis", 1), "time_axis": view.integer("time_axis", 0)}
    return [out.node("ReverseSequence", [dy, view.inputs[1]], **axes)]


RULES = (
    GradientRule("TopK", "dX = dY at the places that were chosen, else 0", one_output(_top_k), constant_inputs=(1,)),
    GradientRule("ReverseSequence", "dX = dY reversed again", one_output(_reverse_sequence), constant_inputs=(1,)),
)
