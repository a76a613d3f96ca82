"""The exponential histogram: bucket bounds, exact merging, quantiles within the stated bound."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError
from holdfast.sketch.histogram import (
    MAX_BUCKETS,
    MAX_SCALE,
    MIN_SCALE,
    ExponentialHistogram,
    HistogramSnapshot,
    merge_snapshots,
)

VALUE = st.floats(0.0, 1.7976931348623157e308, allow_subnormal=False)
LATENCY = st.floats(1e-5, 10.0)
VALUES = st.lists(st.one_of(VALUE, LATENCY, st.just(0.0)), max_size=60)
SCALE = st.integers(MIN_SCALE, MAX_SCALE)


def _of(values: list[float], scale: int = 5) -> ExponentialHistogram:
    histogram = ExponentialHistogram(scale)
    for value in values:
        histogram.add(value)
    return histogram


def _counts(histogram: ExponentialHistogram) -> HistogramSnapshot:
    """The snapshot without its one inexact field."""
    return dataclasses.replace(histogram.snapshot(), sum=0.0)


@given(value=st.floats(1e-300, 1e300), scale=st.integers(0, MAX_SCALE))
def test_value_lies_in_its_bucket(value: float, scale: int) -> None:
    index = _of([value], scale).snapshot().offset

    # exactly: base**i < v <= base**(i+1)  <=>  2**i < v**(2**scale) <= 2**(i+1), over rational numbers
    power = Fraction(value) ** (2**scale)
    slack = 1 + Fraction(2**scale, 2**51)  # a bound is rounded to float64, half a unit in the last place
    assert Fraction(2) ** index / slack < power <= Fraction(2) ** (index + 1) * slack


@pytest.mark.parametrize("scale", [-10, -3, -1, 0, 1, 5, 8])
@pytest.mark.parametrize("exponent", [-1022, -3, -1, 0, 1, 10, 1023])
def test_power_of_two_is_the_inclusive_upper_bound(scale: int, exponent: int) -> None:
    # OTLP: MapToIndex of 2**e is (e << scale) - 1, and of the next float above e << scale (for scale >= 0)
    fine = (exponent << max(scale, 0)) - 1

    assert _of([math.ldexp(1.0, exponent)], scale).snapshot().offset == fine >> max(-scale, 0)
    above = math.nextafter(math.ldexp(1.0, exponent), math.inf)
    assert _of([above], scale).snapshot().offset == (fine + 1) >> max(-scale, 0)


@given(values=VALUES, scale=SCALE)
def test_add_many_equals_adding_one_by_one(values: list[float], scale: int) -> None:
    many = ExponentialHistogram(scale)

    many.add_many(np.array(values))

    assert _counts(many) == _counts(_of(values, scale))


@given(parts=st.lists(VALUES, min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_merge_does_not_depend_on_order_and_equals_counting_all(parts: list[list[float]], order) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(parts)
    order.shuffle(shuffled)
    merged = ExponentialHistogram()

    for part in shuffled:
        merged.merge(_of(part))

    assert _counts(merged) == _counts(_of([value for part in parts for value in part]))


@given(parts=st.lists(st.tuples(VALUES, SCALE), min_size=1, max_size=4))
def test_merge_of_different_scales_equals_counting_at_the_coarsest(parts: list[tuple[list[float], int]]) -> None:
    merged = ExponentialHistogram(MAX_SCALE)

    for values, scale in parts:
        merged.merge(_of(values, scale))

    coarsest = min(scale for _, scale in parts)
    assert _counts(merged) == _counts(_of([value for values, _ in parts for value in values], coarsest))


@given(one=VALUES, two=VALUES, three=VALUES)
def test_merge_is_associative(one: list[float], two: list[float], three: list[float]) -> None:
    left, right, tail = _of(one), _of(one), _of(two)
    left.merge(_of(two))
    left.merge(_of(three))
    tail.merge(_of(three))

    right.merge(tail)

    assert _counts(left) == _counts(right)


@given(values=VALUES.filter(bool))
def test_merge_leaves_the_other_unchanged(values: list[float]) -> None:
    other, empty = _of(values), ExponentialHistogram()
    before = other.snapshot()

    empty.merge(other)
    empty.add(1e-300)
    empty.add(1e300)

    assert other.snapshot() == before


@given(values=st.lists(VALUE, min_size=1, max_size=60), q=st.floats(0.0, 1.0))
def test_quantile_is_within_the_stated_bound(values: list[float], q: float) -> None:
    histogram = _of(values)
    true = sorted(values)[max(1, math.ceil(q * len(values))) - 1]

    estimate = histogram.quantile(q)

    assert estimate is not None
    assert abs(estimate - true) <= histogram.relative_error * true * (1 + 1e-12)


def test_quantile_of_latencies_is_within_the_documented_percentage() -> None:
    rng = np.random.default_rng(7)
    values = rng.lognormal(-5.0, 0.3, 20_000)
    histogram = ExponentialHistogram()
    histogram.add_many(values)

    assert histogram.scale == 5
    assert histogram.relative_error == pytest.approx(0.0108, abs=5e-5)
    for q in (0.5, 0.9, 0.99, 0.999):
        true = float(np.quantile(values, q, method="inverted_cdf"))
        assert histogram.quantile(q) == pytest.approx(true, rel=histogram.relative_error)


def test_relative_error_is_that_of_the_base() -> None:
    for scale in range(-9, MAX_SCALE + 1):
        base = 2.0 ** (2.0**-scale)
        assert ExponentialHistogram(scale).relative_error == pytest.approx((base - 1) / (base + 1), rel=1e-12)


def test_quantile_of_an_empty_histogram_is_none() -> None:
    assert ExponentialHistogram().quantile(0.5) is None


def test_quantile_of_zeros_is_zero() -> None:
    assert _of([0.0, 0.0, 5.0]).quantile(0.5) == 0.0


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_quantile_out_of_range_is_refused(q: float) -> None:
    with pytest.raises(FormatError, match="out of range"):
        ExponentialHistogram().quantile(q)


@given(values=VALUES)
def test_never_more_than_160_buckets_and_never_coarser_than_needed(values: list[float]) -> None:
    snapshot = _of(values).snapshot()

    assert len(snapshot.counts) <= MAX_BUCKETS
    if snapshot.scale < 5:
        positive = [value for value in values if value > 0]
        low, high = (_of([value], snapshot.scale + 1).snapshot().offset for value in (min(positive), max(positive)))
        assert high - low >= MAX_BUCKETS


@given(values=VALUES, scale=SCALE)
def test_snapshot_reads_back_equal(values: list[float], scale: int) -> None:
    snapshot = _of(values, scale).snapshot()

    assert ExponentialHistogram.from_snapshot(snapshot).snapshot() == snapshot


@given(parts=st.lists(st.lists(LATENCY, max_size=20), max_size=4))
def test_merge_snapshots_adds_counts_and_sums(parts: list[list[float]]) -> None:
    everything = [value for part in parts for value in part]

    merged = merge_snapshots(_of(part).snapshot() for part in parts)

    assert merged.count == len(everything)
    assert merged.sum == pytest.approx(math.fsum(everything))
    assert dataclasses.replace(merged, sum=0.0) == _counts(_of(everything))


@given(values=st.lists(LATENCY, min_size=1, max_size=40))
def test_buckets_hold_every_value_at_or_below_their_bound(values: list[float]) -> None:
    buckets = _of([0.0, *values]).buckets()

    seen = 0
    for bound, count in buckets:
        seen += count
        assert seen == sum(value <= bound for value in [0.0, *values])


@pytest.mark.parametrize("value", [-1.0, -0.001, math.nan, math.inf, -math.inf])
def test_bad_value_is_refused_and_not_counted(value: float) -> None:
    histogram = ExponentialHistogram()

    with pytest.raises(FormatError):
        histogram.add(value)
    with pytest.raises(FormatError):
        histogram.add_many([1.0, value])

    assert histogram.snapshot() == ExponentialHistogram().snapshot()


@pytest.mark.parametrize("value", [-0.0, 0, 5e-324, 1.7976931348623157e308])
def test_extreme_value_is_counted(value: float) -> None:
    histogram = _of([value, value, value])

    assert histogram.quantile(0.5) == value
    assert histogram.count == 3


@pytest.mark.parametrize("scale", [-11, 9])
def test_scale_out_of_range_is_refused(scale: int) -> None:
    with pytest.raises(FormatError, match="scale"):
        ExponentialHistogram(scale)


GOOD = HistogramSnapshot(scale=0, zero_count=1, offset=0, counts=(1, 0, 2), sum=15.5, min=0.0, max=7.0, count=4)
NO_ZEROS = dataclasses.replace(GOOD, zero_count=0, count=3, min=1.5)
EMPTY = ExponentialHistogram().snapshot()
BAD_SNAPSHOTS = {
    "scale_too_fine": dataclasses.replace(GOOD, scale=9),
    "count_differs": dataclasses.replace(GOOD, count=5),
    "negative_bucket": dataclasses.replace(GOOD, counts=(2, -1, 2)),
    "negative_zero_count": dataclasses.replace(GOOD, zero_count=-1, count=2),
    "huge_count": dataclasses.replace(GOOD, zero_count=2**63, count=2**63 + 3),
    "leading_empty_bucket": dataclasses.replace(GOOD, offset=-1, counts=(0, 1, 0, 2)),
    "trailing_empty_bucket": dataclasses.replace(GOOD, counts=(1, 0, 2, 0)),
    "too_many_buckets": dataclasses.replace(GOOD, counts=(1,) * 161, count=162),
    "nan_min": dataclasses.replace(GOOD, min=math.nan),
    "nan_sum": dataclasses.replace(GOOD, sum=math.nan),
    "infinite_max": dataclasses.replace(GOOD, max=math.inf),
    "infinite_sum": dataclasses.replace(GOOD, sum=math.inf),
    "negative_sum": dataclasses.replace(GOOD, sum=-1.0),
    "min_above_max": dataclasses.replace(NO_ZEROS, min=8.0),
    "max_outside_its_bucket": dataclasses.replace(GOOD, max=9.0),
    "max_zero_with_buckets": dataclasses.replace(GOOD, max=0.0),
    "min_outside_its_bucket": dataclasses.replace(NO_ZEROS, min=0.5),
    "min_above_zero_with_zeros": dataclasses.replace(GOOD, min=1.5),
    "offset_far_away": dataclasses.replace(GOOD, offset=10**30),
    "only_zeros_with_max": HistogramSnapshot(0, 2, 0, (), 0.0, 0.0, 1.0, 2),
    "empty_with_sum": dataclasses.replace(EMPTY, sum=1.0),
    "empty_with_offset": dataclasses.replace(EMPTY, offset=3),
}


@pytest.mark.parametrize("snapshot", BAD_SNAPSHOTS.values(), ids=BAD_SNAPSHOTS.keys())
def test_snapshot_that_does_not_fit_together_is_refused(snapshot: HistogramSnapshot) -> None:
    with pytest.raises(FormatError):
        ExponentialHistogram.from_snapshot(snapshot)


@pytest.mark.parametrize("snapshot", [GOOD, NO_ZEROS, EMPTY])
def test_snapshot_that_fits_is_accepted(snapshot: HistogramSnapshot) -> None:
    assert ExponentialHistogram.from_snapshot(snapshot).snapshot() == snapshot
