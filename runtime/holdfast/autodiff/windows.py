"""Where the windows of a convolution or pooling lie, and the linear maps of their gradients.

Source: Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", chapters 2 and 4. All sizes are
per spatial axis and static.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.autodiff.rule import NodeView
from holdfast.autodiff.writer import GraphWriter

Sizes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of `kernel` over an input of `size`, giving `count` results per axis; `after` may exceed the node's pads
    (where sizes are rounded up) and `unread` says how many elements at the end no window reaches."""

    size: Sizes
    count: Sizes
    kernel: Sizes
    strides: Sizes
    dilations: Sizes
    before: Sizes
    after: Sizes
    unread: Sizes
    group: int

    @property
    def span(self) -> Sizes:
        """How far a window reaches, gaps included."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    @property
    def is_plain(self) -> bool:
        """Whether every stride is 1."""
        return all(stride == 1 for stride in self.strides)

    @property
    def overlap(self) -> bool:
        """Whether two windows may share an element."""
        return any(span > stride for span, stride in zip(self.span, self.strides, strict=True))


def read_windows(view: NodeView, size: Sizes, count: Sizes, kernel: Sizes) -> Windows:
    """The windows of a Conv or pooling node, or of the Conv that a ConvTranspose undoes."""
    axes = range(len(size))
    strides = view.integers("strides", [1] * len(size))
    dilations = view.integers("dilations", [1] * len(size))
    span = [dilations[i] * (kernel[i] - 1) + 1 for i in axes]
    reach = [(count[i] - 1) * strides[i] + span[i] for i in axes]
    before = _pads_before(view, size, reach)
    after = tuple(max(reach[i] - size[i] - before[i], 0) for i in axes)
    unread = tuple(max(size[i] + before[i] - reach[i], 0) for i in axes)
    return Windows(size, count, kernel, strides, dilations, before, after, unread, view.integer("group", 1))


def _pads_before(view: NodeView, size: Sizes, reach: list[int]) -> Sizes:
    """The padding in front; SAME_* puts the odd element at the end or in front (operator specification)."""
    mode = view.text("auto_pad", "NOTSET")
    if mode == "NOTSET":
        return view.integers("pads", [0] * 2 * len(size))[: len(size)]
    if mode == "VALID":
        return (0,) * len(size)
    total = [max(wide - have, 0) for wide, have in zip(reach, size, strict=True)]
    return tuple(each // 2 if mode == "SAME_UPPER" else each - each // 2 for each in total)


def transposed(out: GraphWriter, dy: str, weight: str, windows: Windows, *, group: int) -> str:
    """d(windows)/dX applied to dY: every result is spread over its window. Elements that no window reads get 0."""
    return out.node(
        "ConvTranspose",
        [dy, weight],
        kernel_shape=windows.kernel,
        strides=windows.strides,
        dilations=windows.dilations,
        pads=(*windows.before, *windows.after),
        output_padding=windows.unread,
        group=group,
    )


def tap(out: GraphWriter, padded: str, windows: Windows, offset: Sizes) -> str:
    """What one element of the kernel sees: float32[..., *count], cut out of the padded input."""
    rank = len(windows.size)
    starts = [each * d for each, d in zip(offset, windows.dilations, strict=True)]
    ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, windows.count, windows.strides, strict=True)]
    axes = range(2, 2 + rank)
    operands = [padded, *(out.integers(*each) for each in (starts, ends, axes, windows.strides))]
    return out.node("Slice", operands)


def padded_input(out: GraphWriter, value: str, windows: Windows) -> str:
    """The input with the zeros around it that windows read."""
    if not any(windows.before) and not any(windows.after):
        return value
    return out.node("Pad", [value, out.integers(0, 0, *windows.before, 0, 0, *windows.after)])


def counted(windows: Windows, pads: tuple[Sizes, Sizes]) -> NDArray[np.float32]:
    """How many elements each window averages: float32[1, 1, *count]. `pads` in front and behind count, gaps don't."""
    total = np.ones((), np.float32)
    for i, size in enumerate(windows.size):
        low, high = -pads[0][i], size + pads[1][i]
        starts = np.arange(windows.count[i]) * windows.strides[i] - windows.before[i]
        places = starts[:, None] + np.arange(windows.kernel[i]) * windows.dilations[i]
        inside = ((places >= low) & (places < high)).sum(axis=1).astype(np.float32)
        total = np.multiply.outer(total, inside)
    return total.reshape(1, 1, *windows.count).astype(np.float32)
