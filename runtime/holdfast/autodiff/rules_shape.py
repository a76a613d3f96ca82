"""Gradients of operators that move or copy whole values: reshaping, transposing, joining, cutting apart, repeating.

Source: each is a linear map of zeros and ones; its gradient is the transposed map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import helper
from onnx.reference import ReferenceEvaluator

from holdfast.autodiff.rule import GradientRule, NodeView, one_output, reduce_to_shape, zeros
from holdfast.autodiff.writer import GraphWriter


def _identity(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [dy]


def _reshape(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """The gradient takes the static shape of the input back; the shape operand has none."""
    return [out.node("Reshape", [dy, out.integers(*view.input_shape(0))])]


def _transpose(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    rank = len(view.input_shape(0))
    order = view.integers("perm", range(rank)[::-1])
    return [out.node("Transpose", [dy], perm=[order.index(axis) for axis in range(rank)])]


def _expand(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [reduce_to_shape(out, dy, view.output_shape(), view.input_shape(0))]


def _tile(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Each axis splits into (repeats, size); the repeats are summed."""
    shape, tiled = view.input_shape(0), view.output_shape()
    split = [part for size, wide in zip(shape, tiled, strict=True) for part in (wide // size, size)]
    value = out.node("Reshape", [dy, out.integers(*split)])
    return [out.node("ReduceSum", [value, out.integers(*range(0, len(split), 2))], keepdims=0)]


def _concat(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    axis = view.axis(0)
    found: list[str | None] = []
    start = 0
    for index in range(len(view.inputs)):
        stop = start + view.input_shape(index)[axis]
        found.append(sliced(out, dy, axis, start, stop) if view.wants(index) else None)
        start = stop
    return found


def _split(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    """The parts joined again; a part that nothing flows back to counts as zeros."""
    parts = [
        zeros(out, view.output_shape(index)) if gradient is None else gradient
        for index, gradient in enumerate(gradients)
    ]
    return [out.node("Concat", parts, axis=view.axis(0)), *[None] * (len(view.inputs) - 1)]


def _depth_to_space(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """The move backwards: for DCR that is SpaceToDepth; for CRD, a transpose (operator specification)."""
    block = view.integer("blocksize", 1)
    if view.text("mode", "DCR") == "DCR":
        return [out.node("SpaceToDepth", [dy], blocksize=block)]
    batch, channels, height, width = view.input_shape(0)
    wide = out.integers(batch, channels // block**2, height, block, width, block)
    moved = out.node("Transpose", [out.node("Reshape", [dy, wide])], perm=[0, 1, 3, 5, 2, 4])
    return [out.node("Reshape", [moved, out.integers(batch, channels, height, width)])]


def _space_to_depth(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("DepthToSpace", [dy], blocksize=view.integer("blocksize", 1), mode="DCR")]


def _trilu(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    return [out.node("Trilu", [dy, *view.inputs[1:]], upper=view.integer("upper", 1))]


def _cumulative_sum(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    exclusive, backwards = view.integer("exclusive", 0), view.integer("reverse", 0)
    return [out.node("CumSum", [dy, view.inputs[1]], exclusive=exclusive, reverse=1 - backwards)]


def _resize(view: NodeView, out: GraphWriter, dy: str) -> list[str | None]:
    """Interpolation is a matrix M per axis, Y = M X, so dX = M^T dY axis by axis; M is measured on unit vectors."""
    source, target = view.input_shape(0), view.output_shape()
    for axis, (size, wide) in enumerate(zip(source, target, strict=True)):
        if size == wide:
            continue
        rank = len(source)
        order = [*(each for each in range(rank) if each != axis), axis]
        matrix = out.constant(_interpolation(view, size, wide, axis))
        moved = out.node("MatMul", [out.node("Transpose", [dy], perm=order), matrix])
        dy = out.node("Transpose", [moved], perm=[order.index(each) for each in range(rank)])
    return [dy]


def _interpolation(view: NodeView, size: int, wide: int, axis: int) -> NDArray[np.float32]:
    """float32[wide, size]: what each sample of the axis weighs in each interpolated one."""

    if view.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize" or view.integer(
        "antialias", 0
    ):
        raise view.refusal("cropping and antialiasing have no rule")
    scales = view.constant(2) if view.has(2) else None
    scale = wide / size if scales is None or scales.size == 0 else _scale_of(view, scales, axis)
    node = helper.make_node("Resize", ["x", "", "scales"], ["y"])
    node.attribute.extend(each for each in view.node.attribute if each.name not in ("axes", "keep_aspect_ratio_policy"))
    given = {"x": np.eye(size, dtype=np.float32), "scales": np.array([1.0, scale], np.float32)}
    (made,) = ReferenceEvaluator(node).run(None, given)
    matrix = np.asarray(made, np.float32).T
    if matrix.shape != (wide, size):
        raise view.refusal("its sizes don't follow from its scales")
    return np.ascontiguousarray(matrix)


def _scale_of(view: NodeView, scales: NDArray[np.generic], axis: int) -> float:
    axes = view.integers("axes", range(len(view.input_shape(0))))
    return float(scales.reshape(-1)[axes.index(axis)])


def sliced(out: GraphWriter, value: str, axis: int, start: int, stop: int) -> str:
    """value[start:stop] along one axis."""
    return out.node("Slice", [value, out.integers(start), out.integers(stop), out.integers(axis)])


RULES = (
    GradientRule("Identity", "dX = dY", one_output(_identity)),
    GradientRule("Reshape", "dX = reshape(dY, shape of X)", one_output(_reshape), constant_inputs=(1,)),
    GradientRule("Flatten", "dX = reshape(dY, shape of X)", one_output(_reshape)),
    GradientRule("Squeeze", "dX = reshape(dY, shape of X)", one_output(_reshape), constant_inputs=(1,)),
    GradientRule("Unsqueeze", "dX = reshape(dY, shape of X)", one_output(_reshape), constant_inputs=(1,)),
    GradientRule("Transpose", "dX = transpose(dY, inverse permutation)", one_output(_transpose)),
    GradientRule("Expand", "dX = sum(dY) over the copies", one_output(_expand), constant_inputs=(1,)),
    GradientRule("Tile", "dX = sum(dY) over the copies", one_output(_tile), constant_inputs=(1,)),
    GradientRule("Concat", "dX_i = the part of dY that X_i became", one_output(_concat)),
    GradientRule("Split", "dX = concat(dY_i)", _split, constant_inputs=(1,)),
    GradientRule("DepthToSpace", "dX = SpaceToDepth(dY)", one_output(_depth_to_space)),
    GradientRule("SpaceToDepth", "dX = DepthToSpace(dY)", one_output(_space_to_depth)),
    GradientRule("Trilu", "dX = trilu(dY)", one_output(_trilu), constant_inputs=(1,)),
    GradientRule("CumSum", "dX = cumulative sum of dY from the other end", one_output(_cumulative_sum), (1,)),
    GradientRule("Resize", "dX = M^T dY, M the interpolation matrix of each axis", one_output(_resize), (1, 2, 3)),
)
