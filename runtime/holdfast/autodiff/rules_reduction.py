"""Gradients of operators that reduce axes: sums, means, extremes and norms.

Source: elementary calculus; the gradient of a sum is spread evenly, of an extreme over the elements that attain it (the
subgradient PyTorch takes for amax), of a norm along the unit vector, 0 at the origin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from holdfast.autodiff.rule import GradientRule, NodeView, as_float, one_output
from holdfast.autodiff.writer import GraphWriter

Spread = Callable[[GraphWriter, str, str, str], str]  # (writer, X, Y kept, dY kept) -> dX


def _axes(view: NodeView) -> tuple[int, ...]:
    """The reduced axes, counted from the front."""
    rank = len(view.input_shape(0))
    given = view.constant_integers(1)
    if not given:
        return () if view.integer("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(axis % rank for axis in given))


def _kept(view: NodeView, out: GraphWriter, value: str) -> str:
    """`value`, of the output's shape, with the reduced axes as axes of one."""
    axes = _axes(view)
    shape = tuple(1 if axis in axes else size for axis, size in enumerate(view.input_shape(0)))
    return value if shape == view.output_shape() else out.node("Reshape", [value, out.integers(*shape)])


def _sum(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Expand", [_kept(view, out, dy), out.integers(*view.input_shape(0))])]


def _mean(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    count = math.prod(view.input_shape(0)[axis] for axis in _axes(view))
    share = out.node("Mul", [_kept(view, out, dy), out.scalar(1.0 / count)])
    return [out.node("Expand", [share, out.integers(*view.input_shape(0))])]


def _extreme(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    mask = as_float(out, out.node("Equal", [view.inputs[0], _kept(view, out, view.outputs[0])]))
    axes = _axes(view)
    equals = out.node("ReduceSum", [mask, out.integers(*axes)], keepdims=1) if axes else mask
    return [out.node("Mul", [mask, out.node("Div", [_kept(view, out, dy), equals])])]


def _spread(spread: Spread) -> Callable[[NodeView, GraphWriter, str], list[str | None]]:
    def emit(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
        return [spread(out, view.inputs[0], _kept(view, out, view.outputs[0]), _kept(view, out, dy))]

    return emit


def _l1(out: GraphWriter, x: str, y: str, dy: str) -> str:
    return out.node("Mul", [out.node("Sign", [x]), dy])


def _l2(out: GraphWriter, x: str, y: str, dy: str) -> str:
    zero = out.node("Equal", [y, out.scalar(0.0)])
    return out.node("Mul", [x, out.node("Div", [dy, out.node("Where", [zero, out.scalar(1.0), y])])])


def _sum_square(out: GraphWriter, x: str, y: str, dy: str) -> str:
    return out.node("Mul", [out.node("Add", [x, x]), dy])


def _log_sum(out: GraphWriter, x: str, y: str, dy: str) -> str:
    return out.node("Mul", [out.node("Reciprocal", [out.node("Exp", [y])]), _as_wide(out, x, dy)])


def _as_wide(out: GraphWriter, x: str, dy: str) -> str:
    return out.node("Expand", [dy, out.node("Shape", [x])])


def _log_sum_exp(out: GraphWriter, x: str, y: str, dy: str) -> str:
    return out.node("Mul", [out.node("Exp", [out.node("Sub", [x, y])]), dy])


def _product(out: GraphWriter, x: str, y: str, dy: str) -> str:
    """Holds where no factor is 0."""
    return out.node("Div", [out.node("Mul", [y, dy]), x])


RULES = (
    GradientRule("ReduceSum", "dX = dY, spread", one_output(_sum), constant_inputs=(1,)),
    GradientRule("ReduceMean", "dX = dY / n, spread", one_output(_mean), constant_inputs=(1,)),
    GradientRule("ReduceMax", "dX = dY [X = Y] / number of equals", one_output(_extreme), constant_inputs=(1,)),
    GradientRule("ReduceMin", "dX = dY [X = Y] / number of equals", one_output(_extreme), constant_inputs=(1,)),
    GradientRule("ReduceL1", "dX = dY sign(X)", one_output(_spread(_l1)), constant_inputs=(1,)),
    GradientRule("ReduceL2", "dX = dY X / Y, 0 where Y = 0", one_output(_spread(_l2)), constant_inputs=(1,)),
    GradientRule("ReduceSumSquare", "dX = 2 dY X", one_output(_spread(_sum_square)), constant_inputs=(1,)),
    GradientRule("ReduceLogSum", "dX = dY exp(-Y)", one_output(_spread(_log_sum)), constant_inputs=(1,)),
    GradientRule("ReduceLogSumExp", "dX = dY exp(X - Y)", one_output(_spread(_log_sum_exp)), constant_inputs=(1,)),
    GradientRule("ReduceProd", "dX = dY Y / X, where no factor is 0", one_output(_spread(_product)), (1,)),
)
