"""Gradients of operators that pick or place elements: Slice, Pad, Gather and Scatter in all their forms.

Source: picking is a linear map of zeros and ones; its transpose adds each element to the place it was picked from, so
an element that was picked twice gets both gradients. Dense moves (Pad, Reshape) stand in for scattering where the
places are known when the graph is built and form a pattern.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from holdfast.autodiff.rule import GradientRule, NodeView, one_output, zeros
from holdfast.autodiff.writer import GraphWriter

_NUMPY_PAD = {"reflect": "reflect", "edge": "edge", "wrap": "wrap"}


def _slice(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    starts, axes = view.constant_integers(1) or (), view.constant_integers(3)
    steps = view.constant_integers(4) or (1,) * len(starts)
    shape, made = list(view.input_shape(0)), list(view.output_shape())
    for start, axis, step in zip(starts, axes or range(len(starts)), steps, strict=True):
        axis = axis if axis >= 0 else axis + len(shape)
        size, count = shape[axis], made[axis]
        if count == 0:
            return [zeros(out, tuple(shape))]
        first = _first_index(start, size, step)
        if step < 0:  # reversed, the elements stand in rising order
            dy = _reversed(out, dy, axis)
            first, step = first + (count - 1) * step, -step
        dy = _spread(out, dy, tuple(made), axis, step)
        made[axis] = (count - 1) * step + 1
        dy = _padded(out, dy, len(shape), axis, first, size - first - made[axis])
        made[axis] = size
    return [dy]


def _first_index(start: int, size: int, step: int) -> int:
    """Where a slice begins, counted from the front and kept inside (operator specification of Slice)."""
    start = start + size if start < 0 else start
    return min(max(start, 0), size - 1 if step < 0 else size)


def _reversed(out: GraphWriter, value: str, axis: int) -> str:
    lowest = np.iinfo(np.int64).min
    return out.node("Slice", [value, *(out.integers(each) for each in (-1, lowest, axis, -1))])


def _spread(out: GraphWriter, value: str, shape: tuple[int, ...], axis: int, step: int) -> str:
    """Put step - 1 zeros between neighbours along an axis: a pad of an axis of one, folded in and cut at the end."""
    if step == 1 or shape[axis] == 1:
        return value
    rank, count = len(shape), shape[axis]
    value = out.node("Reshape", [value, out.integers(*shape[: axis + 1], 1, *shape[axis + 1 :])])
    value = _padded(out, value, rank + 1, axis + 1, 0, step - 1)
    value = out.node("Reshape", [value, out.integers(*shape[:axis], count * step, *shape[axis + 1 :])])
    stop = (count - 1) * step + 1
    return out.node("Slice", [value, out.integers(0), out.integers(stop), out.integers(axis)])


def _padded(out: GraphWriter, value: str, rank: int, axis: int, before: int, after: int) -> str:
    if before == after == 0:
        return value
    pads = [0] * (2 * rank)
    pads[axis], pads[rank + axis] = before, after
    return out.node("Pad", [value, out.integers(*pads)])


def _pad(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    pads = view.constant_integers(1) or ()
    shape = view.input_shape(0)
    rank = len(shape)
    axes = [axis % rank for axis in view.constant_integers(3) or range(rank)]
    before, after = dict(zip(axes, pads[: len(axes)], strict=True)), dict(zip(axes, pads[len(axes) :], strict=True))
    mode = view.text("mode", "constant")
    if mode == "constant":  # a negative pad cut something off, so the way back pads; the runtime does both at once
        back = [-before.get(axis, 0) for axis in range(rank)] + [-after.get(axis, 0) for axis in range(rank)]
        return [out.node("Pad", [dy, out.integers(*back)])]
    made = list(view.output_shape())
    for axis in axes:
        if min(before[axis], after[axis]) < 0:
            raise view.refusal(f"a negative pad in mode {mode!r} has no rule")
        if before[axis] == after[axis] == 0:
            continue
        where = np.pad(np.arange(shape[axis]), (before[axis], after[axis]), mode=_NUMPY_PAD[mode])  # type: ignore[call-overload]  # numpy's overloads want a literal
        dy = _put_back(out, dy, tuple(made), axis, where, shape[axis])
        made[axis] = shape[axis]
    return [dy]


def _put_back(out: GraphWriter, dy: str, shape: tuple[int, ...], axis: int, where: NDArray[np.int64], size: int) -> str:
    """Transpose of picking the indices `where` along an axis of `size`, by a matrix of zeros and ones."""
    matrix = np.zeros((where.size, size), np.float32)
    matrix[np.arange(where.size), where] = 1.0
    order = [*(each for each in range(len(shape)) if each != axis), axis]
    moved = out.node("MatMul", [out.node("Transpose", [dy], perm=order), out.constant(matrix)])
    return out.node("Transpose", [moved], perm=[order.index(each) for each in range(len(shape))])


def _gather(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    shape, axis = view.input_shape(0), view.axis(0)
    places = view.input_shape(1)
    known = view.constants.get(view.inputs[1])
    if known is not None and known.size == 1:  # one place, such as the class token
        index = int(known.item()) % shape[axis]
        dy = out.node("Reshape", [dy, out.integers(*shape[:axis], 1, *shape[axis + 1 :])])
        return [_padded(out, dy, len(shape), axis, index, shape[axis] - index - 1)]
    # rows of a matrix: the picked axis first, then everything else
    rank, depth = len(shape), len(places)
    front = [*range(axis, axis + depth), *range(axis), *range(axis + depth, rank + depth - 1)]
    rest = [each for each in range(rank) if each != axis]
    updates = dy if axis == 0 else out.node("Transpose", [dy], perm=front)
    target = zeros(out, (shape[axis], *(shape[each] for each in rest)))
    indices = out.node("Unsqueeze", [view.inputs[1], out.integers(-1)])
    made = out.node("ScatterND", [target, indices, updates], reduction="add")
    order = [axis, *rest]
    return [made if axis == 0 else out.node("Transpose", [made], perm=[order.index(each) for each in range(rank)])]


def _gather_elements(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    target = zeros(out, view.input_shape(0))
    return [out.node("ScatterElements", [target, view.inputs[1], dy], axis=view.axis(0), reduction="add")]


def _gather_nd(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    if view.integer("batch_dims", 0):
        raise view.refusal("batch_dims has no rule")
    return [out.node("ScatterND", [zeros(out, view.input_shape(0)), view.inputs[1], dy], reduction="add")]


def _scatter_elements(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """What was overwritten has no gradient; what was written or added gets that of its place."""
    axis, added = view.axis(0), _is_added(view)
    index, written = view.inputs[1], zeros(out, view.input_shape(2))
    dx = dy if added else out.node("ScatterElements", [dy, index, written], axis=axis)
    du = out.node("GatherElements", [dy, index], axis=axis) if view.wants(2) else None
    return [dx if view.wants(0) else None, None, du]


def _scatter_nd(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    index, written = view.inputs[1], zeros(out, view.input_shape(2))
    dx = dy if _is_added(view) else out.node("ScatterND", [dy, index, written])
    du = out.node("GatherND", [dy, index]) if view.wants(2) else None
    return [dx if view.wants(0) else None, None, du]


def _is_added(view: NodeView) -> bool:
    reduction = view.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise view.refusal(f"reduction {reduction!r} has no rule")
    return reduction == "add"


RULES = (
    GradientRule("Slice", "dX = dY put back where it was cut out, else 0", one_output(_slice), (1, 2, 3, 4)),
    GradientRule("Pad", "dX = dY without the padding, or with it added to what it copied", one_output(_pad), (1, 2, 3)),
    GradientRule("Gather", "dX[i] = sum(dY of every pick of i)", one_output(_gather), constant_inputs=(1,)),
    GradientRule("GatherElements", "dX[i] = sum(dY of every pick of i)", one_output(_gather_elements), (1,)),
    GradientRule("GatherND", "dX[i] = sum(dY of every pick of i)", one_output(_gather_nd), constant_inputs=(1,)),
    GradientRule(
        "ScatterElements", "dX = dY, 0 where overwritten; dU = dY at its places", one_output(_scatter_elements), (1,)
    ),
    GradientRule("ScatterND", "dX = dY, 0 where overwritten; dU = dY at its places", one_output(_scatter_nd), (1,)),
)
