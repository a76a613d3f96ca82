"""Gradient of GridSample: by what is sampled, and by where.

Source: Jaderberg et al. 2015, "Spatial Transformer Networks", equations 6 and 7. With pixel coordinates x = s g + o of
the grid g, along each axis the corners floor(x) and floor(x) + 1 weigh 1 - f and f, f = x - floor(x), and the product
over the axes weighs a corner of the cell. dX puts dY back at the corners by weight; dg is s times the sum of dY times
the corners' values with -1 and 1 in the place of one axis' weights. Padding moves corners and not coordinates, which
gives the same values: outside, a corner weighs nothing (zeros), stands for the edge (border) or for its mirror image
(reflection), which are constant steps in x. Where x is a whole number the slope is that of the cell above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
from onnx import TensorProto

from holdfast.autodiff.rule import GradientRule, NodeView, as_float, one_output, reshaped, zeros
from holdfast.autodiff.rules_shape import sliced
from holdfast.autodiff.writer import GraphWriter


@dataclass(frozen=True, slots=True)
class _Corner:
    """Of one axis: where it lies, int64[n, 1, places], its weight and the slope of that, float32 of the same shape."""

    index: str
    weight: str
    slope: str


@dataclass(frozen=True, slots=True)
class _Grid:
    """Sizes of a node: x float32[n, channels, *size], grid float32[n, *made, rank], its last axis first of all."""

    rows: int
    channels: int
    size: tuple[int, ...]
    made: tuple[int, ...]

    @property
    def places(self) -> int:
        return math.prod(self.made)


def _grid_sample(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    mode = view.text("mode", "linear")
    if mode not in ("linear", "bilinear", "nearest"):
        raise view.refusal(f"mode {mode!r} has no rule")
    rows, channels, *size = view.input_shape(0)
    grid = _Grid(rows, channels, tuple(size), view.output_shape()[2:])
    is_nearest = mode == "nearest"
    axes = [_corners(view, out, grid, axis, is_nearest=is_nearest) for axis in range(len(size))]
    cells = list(product(*axes))
    where = _expanded(out, _joined(out, [_flat(out, grid, cell) for cell in cells]), grid, len(cells))
    flat = out.node("Reshape", [dy, out.integers(rows, channels, grid.places)])
    spread = _joined(out, [flat] * len(cells))
    dx = dg = None
    if view.wants(0):
        weights = _joined(out, [_product(out, [corner.weight for corner in cell]) for cell in cells])
        target = zeros(out, (rows, channels, math.prod(size)))
        updates = out.node("Mul", [spread, weights])
        found = out.node("ScatterElements", [target, where, updates], axis=2, reduction="add")
        dx = out.node("Reshape", [found, out.integers(*view.input_shape(0))])
    if view.wants(1) and is_nearest:
        dg = zeros(out, view.input_shape(1))  # a step function of the places
    elif view.wants(1):
        dg = _by_grid(view, out, grid, cells, out.node("Mul", [_values(view, out, grid, where), spread]))
    return [dx, dg]


def _corners(view: NodeView, out: GraphWriter, grid: _Grid, axis: int, *, is_nearest: bool) -> list[_Corner]:
    """The two corners along a spatial axis, or the one that is nearest (halves to even, as the runtime rounds)."""
    coordinate = len(grid.size) - 1 - axis  # the grid names the last axis first
    picked = sliced(out, view.inputs[1], len(grid.made) + 1, coordinate, coordinate + 1)
    shape = (grid.rows, 1, grid.places)
    picked = reshaped(out, picked, (grid.rows, *grid.made, 1), shape)
    scale, offset = _scale(view, grid.size[axis]), (grid.size[axis] - 1) / 2
    x = out.node("Add", [out.node("Mul", [picked, out.scalar(scale)]), out.scalar(offset)])
    if is_nearest:
        return [_padded(view, out, grid.size[axis], out.node("Round", [x]), ("", ""))]
    low = out.node("Floor", [x])
    share = out.node("Sub", [x, low])
    rest = out.node("Sub", [out.scalar(1.0), share])
    high = out.node("Add", [low, out.scalar(1.0)])
    return [
        _padded(view, out, grid.size[axis], low, (rest, out.scalar(-1.0))),
        _padded(view, out, grid.size[axis], high, (share, out.scalar(1.0))),
    ]


def _scale(view: NodeView, size: int) -> float:
    """Pixels per unit of the grid, whose -1 and 1 are the middles of the outer pixels or their outer edges."""
    return (size - 1) / 2 if view.integer("align_corners", 0) else size / 2


def _padded(view: NodeView, out: GraphWriter, size: int, place: str, weighed: tuple[str, str]) -> _Corner:
    weight, slope = weighed
    index = out.node("Cast", [place], to=int(TensorProto.INT64))
    mode = view.text("padding_mode", "zeros")
    if mode == "reflection":
        # the mirrors stand on the outer pixels, or half a pixel further out, where an edge is seen twice
        last = 2 * size - (2 if view.integer("align_corners", 0) else 1)
        period = max(last if view.integer("align_corners", 0) else last + 1, 1)
        turned = out.node("Mod", [index, out.integer(period)])
        return _Corner(out.node("Min", [turned, out.node("Sub", [out.integer(last), turned])]), weight, slope)
    inside = out.node("Clip", [index, out.integer(0), out.integer(size - 1)])
    if mode == "zeros":
        counts = as_float(out, out.node("Equal", [index, inside]))
        weight, slope = (out.node("Mul", [each, counts]) if each else counts for each in (weight, slope))
    return _Corner(inside, weight, slope)


def _flat(out: GraphWriter, grid: _Grid, cell: tuple[_Corner, ...]) -> str:
    """Where a corner of the cell lies among all pixels of a channel, counted row by row."""
    found = cell[0].index
    for corner, size in zip(cell[1:], grid.size[1:], strict=True):
        found = out.node("Add", [out.node("Mul", [found, out.integer(size)]), corner.index])
    return found


def _product(out: GraphWriter, factors: list[str]) -> str:
    found = ""
    for factor in filter(None, factors):
        found = out.node("Mul", [found, factor]) if found else factor
    return found or out.constant(np.ones((1, 1, 1), np.float32))


def _expanded(out: GraphWriter, where: str, grid: _Grid, cells: int) -> str:
    return out.node("Expand", [where, out.integers(grid.rows, grid.channels, cells * grid.places)])


def _values(view: NodeView, out: GraphWriter, grid: _Grid, where: str) -> str:
    pixels = out.node("Reshape", [view.inputs[0], out.integers(grid.rows, grid.channels, math.prod(grid.size))])
    return out.node("GatherElements", [pixels, where], axis=2)


def _by_grid(view: NodeView, out: GraphWriter, grid: _Grid, cells: list[tuple[_Corner, ...]], weighed: str) -> str:
    """dg from dY times the values at the corners, float32[n, channels, cells * places]."""
    summed = out.node("ReduceSum", [weighed, out.integers(1)], keepdims=1)
    shape = out.integers(grid.rows, len(cells), grid.places)
    parts = []
    for axis in reversed(range(len(grid.size))):
        slopes = [
            _product(out, [corner.slope if other == axis else corner.weight for other, corner in enumerate(cell)])
            for cell in cells
        ]
        found = out.node("Reshape", [out.node("Mul", [summed, _joined(out, slopes)]), shape])
        found = out.node("ReduceSum", [found, out.integers(1)], keepdims=0)
        found = out.node("Mul", [found, out.scalar(_scale(view, grid.size[axis]))])
        parts.append(out.node("Reshape", [found, out.integers(grid.rows, *grid.made, 1)]))
    return out.node("Concat", parts, axis=len(grid.made) + 1)


def _joined(out: GraphWriter, parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else out.node("Concat", parts, axis=2)


RULES = (
    GradientRule(
        "GridSample",
        "dX = dY put back at the corners of each cell by weight; dg = sum(dY X slope of the weights)",
        one_output(_grid_sample),
    ),
)
