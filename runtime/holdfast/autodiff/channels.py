"""Sums and affine maps per channel, for values of shape [batch, channels, *positions], in the runtime's fastest form.

Why these forms (stock runtime on CPU, 1.5 million floats of 640 rows): a sum over positions and then over the batch
takes a third of one over both at once; BatchNormalization with given statistics is one pass where Mul and Add are two,
and costs no more than a single Mul with a broadcast operand, half as much where there are few positions.
"""

from __future__ import annotations

import math

import numpy as np

from holdfast.autodiff.rule import reshaped
from holdfast.autodiff.writer import GraphWriter

Shape = tuple[int, ...]


def channel_sum(out: GraphWriter, value: str, shape: Shape) -> str:
    """float32[channels]: the sum of `value` over batch and positions."""
    return out.node("ReduceSum", [row_sums(out, value, shape), out.integers(0)], keepdims=0)


def row_sums(out: GraphWriter, value: str, shape: Shape) -> str:
    """float32[batch, channels]: the sum over positions."""
    if len(shape) == 2:
        return value
    return out.node("ReduceSum", [value, out.integers(*range(2, len(shape)))], keepdims=0)


def wide(out: GraphWriter, per_channel: str, shape: Shape) -> str:
    """float32[channels] so that it broadcasts over `shape`."""
    return out.node("Reshape", [per_channel, out.integers(1, shape[1], *(1 for _ in shape[2:]))])


def centred(out: GraphWriter, value: str, shape: Shape, mean: str) -> str:
    """value - mean, mean: float32[channels]."""
    if len(shape) == 2:
        return out.node("Sub", [value, mean])
    ones, zeros = _filled(out, shape[1], 1.0), _filled(out, shape[1], 0.0)
    return out.node("BatchNormalization", [value, ones, zeros, mean, ones], epsilon=0.0)


def affine(out: GraphWriter, value: str, shape: Shape, scale: str, shift: str = "") -> str:
    """value * scale + shift, both float32[channels]; without a shift 0 is added."""
    if len(shape) == 2:
        product = out.node("Mul", [value, scale])
        return out.node("Add", [product, shift]) if shift else product
    ones, zeros = _filled(out, shape[1], 1.0), _filled(out, shape[1], 0.0)
    return out.node("BatchNormalization", [value, scale, shift or zeros, zeros, ones], epsilon=0.0)


def line(out: GraphWriter, value: str, shape: Shape, scale: float, shift: float) -> str:
    """value * scale + shift in one pass over the elements."""
    rows = (1, 1, math.prod(shape))
    scales, shifts = _filled(out, 1, scale), _filled(out, 1, shift)
    return reshaped(out, affine(out, reshaped(out, value, shape, rows), rows, scales, shifts), rows, shape)


def row_affine(out: GraphWriter, value: str, shape: Shape, scale: str, shift: str) -> str:
    """value * scale + shift, both float32[batch, channels]: rows count as channels."""
    batch, channels, *positions = shape
    if not positions:
        return out.node("Add", [out.node("Mul", [value, scale]), shift])
    rows = (1, batch * channels, *positions)
    flat = [out.node("Reshape", [each, out.integers(-1)]) for each in (scale, shift)]
    made = affine(out, reshaped(out, value, shape, rows), rows, *flat)
    return reshaped(out, made, rows, shape)


def _filled(out: GraphWriter, size: int, value: float) -> str:
    return out.constant(np.full(size, value, np.float32))
