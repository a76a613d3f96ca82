"""Bin and category counts: every value is in one bin, and merging is exact in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import FormatError, SketchMismatchError
from holdfast.sketch.bins import BinCounts, CategoryCounts

EDGES = (-1.0, 0.0, 2.5)
VALUES = st.lists(st.floats(), max_size=50)
LABELS = st.lists(st.sampled_from(["cat", "dog", "bird"]), max_size=50)


def test_value_on_an_edge_belongs_to_the_bin_above() -> None:
    counted = BinCounts.empty(EDGES).add_many([-5.0, -1.0, -0.5, 0.0, 2.5, 9.0, math.inf, -math.inf, math.nan])

    assert counted == BinCounts(EDGES, (2, 2, 1, 3), missing=1)


@given(values=VALUES)
def test_every_value_is_counted_once_and_where_numpy_puts_it(values: list[float]) -> None:
    counted = BinCounts.empty(EDGES).add_many(values)

    finite = np.clip([value for value in values if not math.isnan(value)], -100, 100)
    assert counted.total == len(values)
    # numpy.histogram's last bin is closed, hence 101
    assert counted.counts == tuple(np.histogram(finite, [-101, *EDGES, 101])[0].tolist())


@given(parts=st.lists(VALUES, max_size=4), order=st.randoms(use_true_random=False))
def test_bins_merge_in_any_order_equals_counting_all(parts: list[list[float]], order) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(parts)
    order.shuffle(shuffled)
    merged = BinCounts.empty(EDGES)

    for part in shuffled:
        merged = merged.merge(BinCounts.empty(EDGES).add_many(part))

    assert merged == BinCounts.empty(EDGES).add_many([value for part in parts for value in part])


@given(parts=st.lists(LABELS, max_size=4), order=st.randoms(use_true_random=False))
def test_categories_merge_in_any_order_equals_counting_all(parts: list[list[str]], order) -> None:  # type: ignore[no-untyped-def]
    shuffled = list(parts)
    order.shuffle(shuffled)
    merged = CategoryCounts.empty(("cat", "dog"))

    for part in shuffled:
        merged = merged.merge(CategoryCounts.empty(("cat", "dog")).add_many(part))

    everything = [label for part in parts for label in part]
    assert merged == CategoryCounts(
        ("cat", "dog"), (everything.count("cat"), everything.count("dog")), everything.count("bird")
    )
    assert merged.total == len(everything)


def test_merge_over_other_bins_is_refused() -> None:
    with pytest.raises(SketchMismatchError):
        BinCounts.empty(EDGES).merge(BinCounts.empty((0.0,)))
    with pytest.raises(SketchMismatchError):
        CategoryCounts.empty(("a",)).merge(CategoryCounts.empty(("b",)))


def test_bins_without_edges_count_everything_in_one() -> None:
    assert BinCounts.empty(()).add_many([1.0, 2.0]).counts == (2,)


BAD = {
    "unsorted_edges": lambda: BinCounts((1.0, 0.0), (0, 0, 0)),
    "equal_edges": lambda: BinCounts((1.0, 1.0), (0, 0, 0)),
    "nan_edge": lambda: BinCounts((math.nan,), (0, 0)),
    "infinite_edge": lambda: BinCounts((math.inf,), (0, 0)),
    "too_few_counts": lambda: BinCounts((1.0,), (0,)),
    "negative_count": lambda: BinCounts((1.0,), (0, -1)),
    "negative_missing": lambda: BinCounts((1.0,), (0, 0), -1),
    "huge_count": lambda: BinCounts((1.0,), (2**62, 2**62)),
    "too_many_edges": lambda: BinCounts.empty(range(1_025)),
    "double_category": lambda: CategoryCounts.empty(("a", "a")),
    "too_many_categories": lambda: CategoryCounts.empty(str(index) for index in range(4_097)),
    "too_few_category_counts": lambda: CategoryCounts(("a",), ()),
    "negative_category_count": lambda: CategoryCounts(("a",), (-1,)),
}


@pytest.mark.parametrize("make", BAD.values(), ids=BAD.keys())
def test_bad_bins_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FormatError):
        make()
