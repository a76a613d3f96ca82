"""The exponential histogram of OTLP: many values in at most 160 counters, merged exactly, quantiles within 1.1 %.

Bucket i holds the values in (base**i, base**(i+1)] with base = 2**(2**-scale) (OpenTelemetry metrics data model,
"ExponentialHistogram"; the same buckets as Prometheus native histograms). Merging adds integers, so the counts do not
depend on the order; only `sum`, a float64, may differ in its last bits. When values span more than 160 buckets, pairs
of neighbours are joined and the scale falls by one, which is exact too: a bucket is always the union of two finer ones.

Bucket bounds come from integer arithmetic, not from the C library's pow or log, so that a value on a bound falls into
the same bucket on every processor. Not thread-safe: one owner, who hands out snapshots.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from math import frexp

import numpy as np
import numpy.typing as npt

from holdfast.errors import FormatError

DEFAULT_SCALE = 5  # base 1.0219: quantiles within 1.08 %
MAX_SCALE = 8  # the finest that Prometheus takes
MIN_SCALE = -10  # the coarsest of OTLP: all of float64 in three buckets
MAX_BUCKETS = 160  # at scale 5 a span of 1 : 32 without losing resolution; OTLP's default
MAX_COUNT = 2**63 - 1

_ROOT_BITS = 80  # working precision of the bounds; float64 keeps 53


@dataclass(frozen=True, slots=True)
class HistogramSnapshot:
    """The plain fields of a histogram, as they travel.

    `counts[k]` belongs to bucket `offset + k`; the first and the last count are not zero. Empty: all fields but `scale`
    are zero.
    """

    scale: int
    zero_count: int
    offset: int
    counts: tuple[int, ...]
    sum: float
    min: float
    max: float
    count: int


class ExponentialHistogram:
    """Counts finite values >= 0. Values below 2**-1022 are counted but lose the error bound."""

    def __init__(self, scale: int = DEFAULT_SCALE) -> None:
        _check_scale(scale)
        self._scale = scale
        self._bounds = _bounds(scale)
        self._zero_count = 0
        self._buckets: dict[int, int] = {}
        self._first = self._last = 0  # lowest and highest bucket; meaningless while there is none
        self._sum = 0.0
        self._min = math.inf
        self._max = -math.inf
        self._count = 0

    @classmethod
    def from_snapshot(cls, snapshot: HistogramSnapshot) -> ExponentialHistogram:
        """Go on from a snapshot.

        Raises:
            FormatError: its fields do not fit together.
        """
        _check_snapshot(snapshot)
        histogram = cls(snapshot.scale)
        if snapshot.count == 0:
            return histogram
        filled = ((snapshot.offset + k, count) for k, count in enumerate(snapshot.counts) if count)
        histogram._buckets = dict(filled)
        histogram._first = snapshot.offset
        histogram._last = snapshot.offset + len(snapshot.counts) - 1
        histogram._zero_count = snapshot.zero_count
        histogram._sum, histogram._min, histogram._max = snapshot.sum, snapshot.min, snapshot.max
        histogram._count = snapshot.count
        return histogram

    @property
    def scale(self) -> int:
        return self._scale

    @property
    def count(self) -> int:
        return self._count

    @property
    def relative_error(self) -> float:
        """How far `quantile` may be off, as a fraction of the true value: (base - 1) / (base + 1)."""
        # tanh(x / 2) with x = ln(base): the same figure, without overflow at coarse scales
        return math.tanh(math.ldexp(math.log(2.0), -self._scale) / 2)

    def add(self, value: float) -> None:
        """Count one value.

        Raises:
            FormatError: it is negative, infinite or not a number; nothing is counted.
        """
        if not 0.0 <= value < math.inf:
            raise FormatError(f"histogram value is {value}, expected a finite number >= 0")
        self._count += 1
        self._sum += value
        if value < self._min:
            self._min = value
        if value > self._max:
            self._max = value
        if value == 0.0:
            self._zero_count += 1
            return
        index = _index(value, self._scale, self._bounds)
        if index in self._buckets:
            self._buckets[index] += 1
        else:
            self._insert(index, index, {index: 1})

    def add_many(self, values: npt.ArrayLike) -> None:
        """Count many values: float[...], any shape, finite and >= 0, not modified; all or none are counted.

        Raises:
            FormatError: one of them is negative, infinite or not a number.
        """
        array = np.asarray(values, dtype=np.float64).ravel()
        if array.size == 0:
            return
        low, high = float(array.min()), float(array.max())
        if not (low >= 0.0 and high < math.inf):  # a NaN anywhere makes both NaN
            raise FormatError(f"histogram values go from {low} to {high}, expected finite numbers >= 0")
        positive = array[array > 0.0]
        self._count += array.size
        with np.errstate(over="ignore"):  # `snapshot` caps an infinite sum
            self._sum += float(array.sum())
        self._min, self._max = min(self._min, low), max(self._max, high)
        self._zero_count += array.size - positive.size
        if positive.size:
            indexes, counts = np.unique(self._indexes(positive), return_counts=True)
            added = dict(zip(indexes.tolist(), counts.tolist(), strict=True))
            self._insert(int(indexes[0]), int(indexes[-1]), added)

    def merge(self, other: ExponentialHistogram) -> None:
        """Add everything that `other` counted; the result has the coarser of the two scales, or a coarser one."""
        self._downscale(max(0, self._scale - other._scale))
        shift = other._scale - self._scale
        if other._buckets:
            self._insert(other._first >> shift, other._last >> shift, _joined(other._buckets, shift))
        self._zero_count += other._zero_count
        self._count += other._count
        self._sum += other._sum
        self._min, self._max = min(self._min, other._min), max(self._max, other._max)

    def quantile(self, q: float) -> float | None:
        """The value of rank ceil(q * count) (at least 1) in ascending order; None while empty.

        Within `relative_error` of that value (DDSketch, Masson et al. 2019, lemma 2: the point 2lu/(l+u) of a bucket
        (l, u]), and exact for the smallest, the largest and zero.

        Raises:
            FormatError: q is not in [0, 1].
        """
        if not 0.0 <= q <= 1.0:
            raise FormatError(f"quantile {q} is out of range, expected 0 to 1")
        if self._count == 0:
            return None
        rank = max(1, math.ceil(q * self._count))
        if rank <= self._zero_count:
            return 0.0
        if rank in {1, self._count}:
            return self._min if rank == 1 else self._max
        seen = self._zero_count
        for index in sorted(self._buckets):
            seen += self._buckets[index]
            if seen >= rank:
                break
        return min(max(_lower_bound(index, self._scale) * (1.0 + self.relative_error), self._min), self._max)

    def buckets(self) -> list[tuple[float, int]]:
        """(upper bound, count) of every filled bucket, ascending; zeros come first, as (0.0, zero_count)."""
        zeros = [(0.0, self._zero_count)] if self._zero_count else []
        return zeros + [(_lower_bound(index + 1, self._scale), self._buckets[index]) for index in sorted(self._buckets)]

    def snapshot(self) -> HistogramSnapshot:
        """The plain fields, to sign, send or store."""
        if self._count == 0:
            return HistogramSnapshot(self._scale, 0, 0, (), 0.0, 0.0, 0.0, 0)
        if self._buckets:
            offset = self._first
            counts = tuple(self._buckets.get(index, 0) for index in range(self._first, self._last + 1))
        else:
            offset, counts = 0, ()
        total = min(self._sum, sys.float_info.max)
        return HistogramSnapshot(
            self._scale, self._zero_count, offset, counts, total, self._min, self._max, self._count
        )

    def _indexes(self, positive: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        mantissas, exponents = np.frexp(positive)
        scale = max(self._scale, 0)
        steps = np.searchsorted(np.asarray(self._bounds), mantissas, side="left")
        fine = ((exponents.astype(np.int64) - 1) << scale) + steps - 1
        return np.asarray(fine >> max(-self._scale, 0), dtype=np.int64)

    def _insert(self, first: int, last: int, added: dict[int, int]) -> None:
        """Add counts of this scale's buckets, the lowest being `first` and the highest `last`."""
        if self._buckets:
            first, last = min(first, self._first), max(last, self._last)
        shift = 0
        while (last >> shift) - (first >> shift) >= MAX_BUCKETS:
            shift += 1
        self._downscale(shift)
        for index, count in _joined(added, shift).items():
            self._buckets[index] = self._buckets.get(index, 0) + count
        self._first, self._last = first >> shift, last >> shift

    def _downscale(self, steps: int) -> None:
        if steps == 0:
            return
        self._scale -= steps
        self._bounds = _bounds(self._scale)
        self._buckets = _joined(self._buckets, steps)
        self._first, self._last = self._first >> steps, self._last >> steps


def merge_snapshots(snapshots: Iterable[HistogramSnapshot], scale: int = DEFAULT_SCALE) -> HistogramSnapshot:
    """All snapshots as one; `scale` caps how fine the result is.

    Raises:
        FormatError: the fields of one do not fit together.
    """
    merged = ExponentialHistogram(scale)
    for snapshot in snapshots:
        merged.merge(ExponentialHistogram.from_snapshot(snapshot))
    return merged.snapshot()


@lru_cache(maxsize=MAX_SCALE + 1)
def _fine_bounds(scale: int) -> tuple[float, ...]:
    """2**(j / 2**scale - 1) for j = 0 .. 2**scale: the bucket bounds inside [0.5, 1], by integer square roots."""
    bounds = []
    for j in range(2**scale + 1):
        root = 1 << (j + (_ROOT_BITS << scale))
        for _ in range(scale):
            root = math.isqrt(root)
        bounds.append(math.ldexp(root / (1 << _ROOT_BITS), -1))
    return tuple(bounds)


def _bounds(scale: int) -> tuple[float, ...]:
    return _fine_bounds(max(scale, 0))


def _index(value: float, scale: int, bounds: tuple[float, ...]) -> int:
    """The bucket of a positive value: the i with base**i < value <= base**(i+1)."""
    mantissa, exponent = frexp(value)
    if scale >= 0:
        return ((exponent - 1) << scale) + bisect_left(bounds, mantissa) - 1
    return (exponent - 2 + bisect_left(bounds, mantissa)) >> -scale


def _lower_bound(index: int, scale: int) -> float:
    """base**index; inf where float64 ends."""
    fine = index << max(-scale, 0)
    exponent, step = fine >> max(scale, 0), fine & ((1 << max(scale, 0)) - 1)
    try:
        return math.ldexp(_bounds(scale)[step], exponent + 1)
    except OverflowError:
        return math.inf


def _joined(buckets: dict[int, int], steps: int) -> dict[int, int]:
    if steps == 0:
        return buckets
    joined: dict[int, int] = {}
    for index, count in buckets.items():
        joined[index >> steps] = joined.get(index >> steps, 0) + count
    return joined


def _check_scale(scale: int) -> None:
    if not MIN_SCALE <= scale <= MAX_SCALE:
        raise FormatError(f"histogram scale is {scale}, expected {MIN_SCALE} to {MAX_SCALE}")


def _check_snapshot(snapshot: HistogramSnapshot) -> None:
    _check_scale(snapshot.scale)
    counts = snapshot.counts
    if len(counts) > MAX_BUCKETS:
        raise FormatError(f"histogram has {len(counts)} buckets, at most {MAX_BUCKETS} are read")
    if snapshot.zero_count < 0 or any(count < 0 for count in counts) or snapshot.count > MAX_COUNT:
        raise FormatError("histogram has a count below 0 or above 2**63 - 1")
    if snapshot.zero_count + sum(counts) != snapshot.count:
        raise FormatError(f"histogram buckets hold {snapshot.zero_count + sum(counts)}, expected {snapshot.count}")
    if counts and not (counts[0] and counts[-1]):
        raise FormatError("histogram begins or ends with an empty bucket; leave those out")
    if not counts and snapshot.offset:
        raise FormatError(f"histogram without buckets has the offset {snapshot.offset}, expected 0")
    if not 0.0 <= snapshot.min <= snapshot.max < math.inf or not 0.0 <= snapshot.sum < math.inf:
        raise FormatError("histogram min, max or sum is not a number >= 0, or min is above max")
    if snapshot.count == 0 and (snapshot.max or snapshot.sum):
        raise FormatError("empty histogram has a max or a sum, expected 0")
    _check_extremes(snapshot)


def _check_extremes(snapshot: HistogramSnapshot) -> None:
    """min and max must lie in the lowest and the highest bucket, or quantiles would leave them."""
    bounds = _bounds(snapshot.scale)
    if snapshot.zero_count and snapshot.min:
        raise FormatError(f"histogram counts zeros, but its min is {snapshot.min}")
    if not snapshot.counts:
        if snapshot.max:
            raise FormatError(f"histogram counts only zeros, but its max is {snapshot.max}")
        return
    last = snapshot.offset + len(snapshot.counts) - 1
    if not snapshot.max or _index(snapshot.max, snapshot.scale, bounds) != last:
        raise FormatError(f"histogram max {snapshot.max} is not in its highest bucket {last}")
    if snapshot.zero_count:
        return
    if not snapshot.min or _index(snapshot.min, snapshot.scale, bounds) != snapshot.offset:
        raise FormatError(f"histogram min {snapshot.min} is not in its lowest bucket {snapshot.offset}")
