"""Weight gradients of convolutions, one element of the kernel after the other.

dW[:, :, k] = sum over samples and positions of dY and of what element k of the kernel sees of X: X shifted by k
(Dumoulin and Visin 2016, chapter 4). Shifts are cut out along the last axis first, so that the cuts along the others
move long runs of memory: a cut with a stride, or of short rows, costs more than the product that follows it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

from holdfast.autodiff.windows import Windows, padded_input, tap
from holdfast.autodiff.writer import GraphWriter

# matrix products with fewer columns waste the width of the processor's registers; the elements are joined first then
MIN_COLUMNS = 8


def weight_by_products(out: GraphWriter, x: str, dy: str, windows: Windows, sizes: tuple[int, int, int]) -> str:
    """One group: dW[:, :, k] = dY X_k^T, rows being channels and columns (position, sample, last position).

    The operand with more channels comes first. Returns: float32[made, channels, *kernel].
    """
    batch, made, channels = sizes
    rank, elements = len(windows.size), math.prod(windows.kernel)
    order = [1, *range(2, 1 + rank), 0, 1 + rank]  # channels, all axes but the last, samples, the last axis
    columns = math.prod(windows.count) * batch
    image = out.node("Transpose", [padded_input(out, x, windows)], perm=order)
    rows = out.node("Reshape", [out.node("Transpose", [dy], perm=order), out.integers(made, columns)])
    seen = (out.node("Reshape", [cut, out.integers(channels, columns)]) for cut in _cuts(out, image, windows, rank + 1))
    if channels >= MIN_COLUMNS and made >= channels:
        found = out.node("Concat", [out.node("Gemm", [rows, each], transB=1) for each in seen], axis=1)
        split = out.node("Reshape", [found, out.integers(made, elements, channels)])
        moved = out.node("Transpose", [split], perm=[0, 2, 1])
        return out.node("Reshape", [moved, out.integers(made, channels, *windows.kernel)])
    if channels < MIN_COLUMNS:
        found = out.node("Gemm", [out.node("Concat", list(seen), axis=0), rows], transB=1)
    else:
        found = out.node("Concat", [out.node("Gemm", [each, rows], transB=1) for each in seen], axis=0)
    split = out.node("Reshape", [found, out.integers(elements, channels, made)])
    moved = out.node("Transpose", [split], perm=[2, 1, 0])
    return out.node("Reshape", [moved, out.integers(made, channels, *windows.kernel)])


def _cuts(out: GraphWriter, image: str, windows: Windows, last: int) -> Iterator[str]:
    """What each element of the kernel sees, in the order of the kernel; the last spatial axis is axis `last`."""
    ends = [(size - 1) * stride + 1 for size, stride in zip(windows.count, windows.strides, strict=True)]
    outer = range(len(windows.size) - 1)
    for offset in product(*(range(size) for size in windows.kernel)):
        starts = [each * dilation for each, dilation in zip(offset, windows.dilations, strict=True)]
        inner = [[starts[-1]], [starts[-1] + ends[-1]], [last], [windows.strides[-1]]]
        cut = out.node("Slice", [image, *(out.integers(*each) for each in inner)])  # emitted once per last offset
        if outer:
            stops = [starts[axis] + ends[axis] for axis in outer]
            operands = [starts[:-1], stops, [axis + 1 for axis in outer], windows.strides[:-1]]
            cut = out.node("Slice", [cut, *(out.integers(*each) for each in operands)])
        yield cut


def weight_by_taps(out: GraphWriter, x: str, dy: str, windows: Windows, sizes: tuple[int, int, int]) -> str:
    """Depthwise: dW[c, 0, k] = sum over samples and positions of dY[c] X_k[c]. Returns: float32[made, 1, *kernel]."""
    batch, made, _ = sizes
    flat = (batch * made, math.prod(windows.count))
    dy = out.node("Reshape", [dy, out.integers(*flat)])
    see = _rows_seen if len(windows.size) == 2 else _taps_seen
    seen = see(out, x, windows, flat)
    found = [out.node("ReduceSum", [out.node("Mul", [each, dy]), out.integers(1)], keepdims=1) for each in seen]
    columns = out.node("Reshape", [out.node("Concat", found, axis=1), out.integers(batch, made, -1)])
    total = out.node("ReduceSum", [columns, out.integers(0)], keepdims=0)
    return out.node("Reshape", [total, out.integers(made, 1, *windows.kernel)])


def _taps_seen(out: GraphWriter, x: str, windows: Windows, flat: tuple[int, int]) -> Iterator[str]:
    padded = padded_input(out, x, windows)
    for offset in product(*(range(size) for size in windows.kernel)):
        yield out.node("Reshape", [tap(out, padded, windows, offset), out.integers(*flat)])


def _rows_seen(out: GraphWriter, x: str, windows: Windows, flat: tuple[int, int]) -> Iterator[str]:
    """Images: columns are cut out first; then the rows that one element sees lie one behind the other.

    With a stride s along the rows, s of them are seen as one, so that every s-th row is a cut without steps.
    """
    rows, columns = flat[0], windows.count[1]
    (before, left), (after, right), stride = windows.before, windows.after, windows.strides[0]
    height = windows.size[0] + before + after
    after += -height % stride
    groups = -(-height // stride)
    pads = (0, 0, before, left, 0, 0, after, right)
    padded = out.node("Pad", [x, out.integers(*pads)]) if any(pads) else x
    for i, j in product(*(range(size) for size in windows.kernel)):
        start = j * windows.dilations[1]
        stop = start + (columns - 1) * windows.strides[1] + 1
        inner = [[start], [stop], [3], [windows.strides[1]]]
        shifted = out.node("Slice", [padded, *(out.integers(*each) for each in inner)])
        shifted = out.node("Reshape", [shifted, out.integers(rows, groups, stride * columns)])
        first, phase = divmod(i * windows.dilations[0], stride)
        operands = [[first], [first + windows.count[0]], [1]]
        if stride > 1:
            operands = [[first, phase * columns], [first + windows.count[0], (phase + 1) * columns], [1, 2]]
        cut = out.node("Slice", [shifted, *(out.integers(*each) for each in operands)])
        yield out.node("Reshape", [cut, out.integers(*flat)])
