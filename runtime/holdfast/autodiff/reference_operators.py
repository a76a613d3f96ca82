"""Operators for ONNX's reference evaluator in float64, in the place of its own.

Why: its ConvTranspose knows no groups, its Conv takes seconds for a small image, its MaxPool names wrong indices for
some strides, its AveragePool counts what rounding up adds, its GatherElements and ScatterElements know no index that is
smaller than the data, and its Erf and Gelu round to float32, which drowns a difference quotient.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun

from holdfast.autodiff.reference_recurrent import RECURRENT

Doubles = NDArray[np.float64]
Sizes = tuple[int, ...]


def _erf(x: Doubles) -> Doubles:
    return np.asarray(np.vectorize(math.erf, otypes=[np.float64])(x), dtype=np.float64).reshape(x.shape)


class Erf(OpRun):
    """The error function."""

    def _run(self, x: Doubles) -> tuple[Doubles]:
        return (_erf(x),)


class Gelu(OpRun):
    """Both forms of Gelu (Hendrycks and Gimpel 2016)."""

    def _run(self, x: Doubles, approximate: str | None = None) -> tuple[Doubles]:
        if approximate == "tanh":
            return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)
        return (0.5 * x * (1 + _erf(x / math.sqrt(2))),)


class MaxPool(OpRun):
    """The maximum of each window and, if asked for, where it lies: flat over the whole tensor."""

    def _run(
        self,
        x: Doubles,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        dilations: Sizes | None = None,
        kernel_shape: Sizes = (),
        pads: Sizes | None = None,
        storage_order: int | None = None,
        strides: Sizes | None = None,
    ) -> tuple[NDArray[np.generic], ...]:
        rank = x.ndim - 2
        steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        before, after = _pads(x.shape[2:], kernel_shape, steps, gaps, pads, auto_pad)
        count, behind = _windows(x.shape[2:], kernel_shape, steps, gaps, (before, after), rounds_up=bool(ceil_mode))
        edges = [(0, 0), (0, 0), *zip(before, behind, strict=True)]
        wide = np.pad(x, edges, constant_values=-np.inf)
        flat = np.pad(np.arange(x.size).reshape(x.shape), edges, constant_values=-1)
        offsets = list(product(*(range(k) for k in kernel_shape)))
        places = [_index(..., *_places(offset, gaps, steps, count)) for offset in offsets]
        seen, where = np.stack([wide[each] for each in places]), np.stack([flat[each] for each in places])
        chosen = seen.argmax(axis=0)[None]
        found = (np.take_along_axis(seen, chosen, 0)[0], np.take_along_axis(where, chosen, 0)[0])
        return found[: len(self.onnx_node.output)]


class AveragePool(OpRun):
    """The mean of each window; the padding counts if asked for, what rounding up adds never does."""

    def _run(
        self,
        x: Doubles,
        auto_pad: str | None = None,
        ceil_mode: int | None = None,
        count_include_pad: int | None = None,
        dilations: Sizes | None = None,
        kernel_shape: Sizes = (),
        pads: Sizes | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Doubles]:
        rank = x.ndim - 2
        steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        before, after = _pads(x.shape[2:], kernel_shape, steps, gaps, pads, auto_pad)
        count, behind = _windows(x.shape[2:], kernel_shape, steps, gaps, (before, after), rounds_up=bool(ceil_mode))
        more = [(0, wide - given) for wide, given in zip(behind, after, strict=True)]
        given = [(0, 0), (0, 0), *zip(before, after, strict=True)]
        inside = np.pad(np.ones_like(x), given, constant_values=1.0 if count_include_pad else 0.0)
        wide, inside = (np.pad(each, [(0, 0), (0, 0), *more]) for each in (np.pad(x, given), inside))
        total, counted = np.zeros((*x.shape[:2], *count)), np.zeros((*x.shape[:2], *count))
        for offset in product(*(range(k) for k in kernel_shape)):
            seen = _index(..., *_places(offset, gaps, steps, count))
            total += wide[seen]
            counted += inside[seen]
        return (total / counted,)


class GatherElements(OpRun):
    """The element of the data at each place of the index, along one axis."""

    def _run(
        self, data: NDArray[np.generic], indices: NDArray[np.int64], axis: int | None = None
    ) -> tuple[NDArray[np.generic], ...]:
        return (data[_elements(data, indices, axis or 0)],)


class ScatterElements(OpRun):
    """The data, with updates put or added at the places of the index."""

    def _run(
        self,
        data: NDArray[np.generic],
        indices: NDArray[np.int64],
        updates: NDArray[np.generic],
        axis: int | None = None,
        reduction: str | None = None,
    ) -> tuple[NDArray[np.generic], ...]:
        made, places = data.copy(), _elements(data, indices, axis or 0)
        if reduction in (None, "none"):
            made[places] = updates
        else:
            {"add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}[reduction].at(
                made, places, updates
            )
        return (made,)


class Conv(OpRun):
    """One product of matrices per element of the kernel."""

    def _run(
        self,
        x: Doubles,
        w: Doubles,
        b: Doubles | None = None,
        auto_pad: str | None = None,
        dilations: Sizes | None = None,
        group: int | None = None,
        kernel_shape: Sizes | None = None,
        pads: Sizes | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Doubles]:
        kernel, rank, groups = w.shape[2:], x.ndim - 2, group or 1
        steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        before, after = _pads(x.shape[2:], kernel, steps, gaps, pads, auto_pad)
        wide = np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)])
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, gaps, strict=True)]
        count = [(n - span) // s + 1 for n, span, s in zip(wide.shape[2:], spans, steps, strict=True)]
        weight = w.reshape(groups, -1, *w.shape[1:])
        y = np.zeros((x.shape[0], groups, weight.shape[1], *count))
        for offset in product(*(range(k) for k in kernel)):
            seen = wide[_index(..., *_places(offset, gaps, steps, count))].reshape(x.shape[0], groups, -1, *count)
            y += np.einsum("goc,bgc...->bgo...", weight[_index(..., *offset)], seen)
        y = y.reshape(x.shape[0], -1, *count)
        return (y if b is None else y + b.reshape(1, -1, *(1,) * rank),)


class ConvTranspose(OpRun):
    """Each input is spread over its window; the pads are cut off."""

    def _run(
        self,
        x: Doubles,
        w: Doubles,
        b: Doubles | None = None,
        auto_pad: str | None = None,
        dilations: Sizes | None = None,
        group: int | None = None,
        kernel_shape: Sizes | None = None,
        output_padding: Sizes | None = None,
        output_shape: Sizes | None = None,
        pads: Sizes | None = None,
        strides: Sizes | None = None,
    ) -> tuple[Doubles]:
        kernel, rank, groups = w.shape[2:], x.ndim - 2, group or 1
        steps, gaps = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        count, extra, cut = x.shape[2:], output_padding or (0,) * rank, tuple(pads or (0,) * 2 * rank)
        full = [
            (n - 1) * s + (k - 1) * d + 1 + e for n, s, k, d, e in zip(count, steps, kernel, gaps, extra, strict=True)
        ]
        weight = w.reshape(groups, -1, *w.shape[1:])
        value = x.reshape(x.shape[0], groups, -1, *count)
        y = np.zeros((x.shape[0], groups, w.shape[1], *full))
        for offset in product(*(range(k) for k in kernel)):
            spread = np.einsum("gco,bgc...->bgo...", weight[_index(..., *offset)], value)
            y[_index(..., *_places(offset, gaps, steps, count))] += spread
        y = y.reshape(x.shape[0], -1, *full)
        inside = [slice(cut[i], full[i] - cut[rank + i]) for i in range(rank)]
        y = y[_index(..., *inside)]
        return (y if b is None else y + b.reshape(1, -1, *(1,) * rank),)


def _index(*parts: Any) -> Any:
    """A tuple of indices; numpy's types don't know one of mixed parts."""
    return parts


def _places(offset: Sizes, gaps: Sizes, steps: Sizes, count: Sizes | list[int]) -> tuple[slice, ...]:
    """What one element of the kernel touches: one element per window."""
    begins = (o * d for o, d in zip(offset, gaps, strict=True))
    return tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(begins, count, steps, strict=True))


def _windows(
    shape: Sizes, kernel: Sizes, steps: Sizes, gaps: Sizes, pads: tuple[Sizes, Sizes], *, rounds_up: bool
) -> tuple[list[int], list[int]]:
    """How many windows there are per axis, and how far behind the input they reach."""
    count, behind = [], []
    for i, size in enumerate(shape):
        span = (kernel[i] - 1) * gaps[i] + 1
        room = size + pads[0][i] + pads[1][i] - span
        windows = (-(-room // steps[i]) if rounds_up else room // steps[i]) + 1
        windows -= (windows - 1) * steps[i] >= size + pads[0][i]  # none may begin behind the input
        count.append(windows)
        behind.append(max((windows - 1) * steps[i] + span - size - pads[0][i], pads[1][i]))
    return count, behind


def _elements(data: NDArray[np.generic], indices: NDArray[np.int64], axis: int) -> Any:
    """An index of numpy that picks each element of `indices` along one axis, its own place along the others."""
    places: list[Any] = list(np.ogrid[tuple(slice(size) for size in indices.shape)])
    places[axis] = indices
    return tuple(places)


def _pads(
    size: Sizes, kernel: Sizes, steps: Sizes, gaps: Sizes, pads: Sizes | None, mode: str | None
) -> tuple[Sizes, Sizes]:
    rank = len(size)
    if mode in ("SAME_UPPER", "SAME_LOWER"):
        totals = [
            max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            for n, k, s, d in zip(size, kernel, steps, gaps, strict=True)
        ]
        halves = tuple(total // 2 if mode == "SAME_UPPER" else total - total // 2 for total in totals)
        return halves, tuple(total - half for total, half in zip(totals, halves, strict=True))
    given = tuple(pads or (0,) * 2 * rank) if mode != "VALID" else (0,) * 2 * rank
    return given[:rank], given[rank:]


OPERATORS: tuple[type[OpRun], ...] = (
    *(Erf, Gelu, MaxPool, AveragePool, Conv, ConvTranspose),
    *(GatherElements, ScatterElements),
)
for _operator in OPERATORS:
    _operator.op_domain = ""
OPERATORS += RECURRENT
