"""Drift distances against scipy, and their stated ranges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.special import rel_entr

from holdfast.errors import FormatError, SketchMismatchError
from holdfast.sketch.drift import PSI_FLOOR, js, psi

COUNTS = st.integers(1, 12).flatmap(
    lambda bins: st.tuples(*[st.lists(st.integers(0, 10**6), min_size=bins, max_size=bins).filter(any)] * 2)
)


@given(pair=COUNTS)
def test_js_equals_scipy(pair: tuple[list[int], list[int]]) -> None:
    # scipy gives the distance, the square root; it loses the last digits near zero
    assert js(*pair) == pytest.approx(float(np.nan_to_num(jensenshannon(*pair))) ** 2, abs=1e-12)


@given(pair=COUNTS)
def test_psi_equals_the_two_divergences_of_scipy(pair: tuple[list[int], list[int]]) -> None:
    expected, actual = (np.maximum(np.array(side) / np.sum(side), PSI_FLOOR) for side in pair)

    assert psi(*pair) == pytest.approx(
        float((rel_entr(expected, actual) + rel_entr(actual, expected)).sum()), abs=1e-12
    )


@given(pair=COUNTS)
def test_distances_are_symmetric_and_in_range(pair: tuple[list[int], list[int]]) -> None:
    expected, actual = pair

    assert psi(expected, actual) == pytest.approx(psi(actual, expected), abs=1e-12)
    assert js(expected, actual) == pytest.approx(js(actual, expected), abs=1e-12)
    assert psi(expected, actual) >= 0.0
    assert 0.0 <= js(expected, actual) <= math.log(2)


@given(pair=COUNTS, factor=st.integers(1, 1_000))
def test_distances_of_equal_shares_are_zero(pair: tuple[list[int], list[int]], factor: int) -> None:
    more = [count * factor for count in pair[0]]

    assert psi(pair[0], more) == pytest.approx(0.0, abs=1e-12)
    assert js(pair[0], more) == pytest.approx(0.0, abs=1e-12)


def test_psi_of_a_worked_example() -> None:
    # shares .5 .5 against .8 .2: .3 ln 1.6 - .3 ln .4 = .3 ln 4
    assert psi([50, 50], [80, 20]) == pytest.approx(0.3 * math.log(4), rel=1e-12)


def test_distances_of_disjoint_histograms_are_at_their_maximum() -> None:
    assert js([7, 0], [0, 3]) == pytest.approx(math.log(2), rel=1e-12)
    assert psi([7, 0], [0, 3]) == pytest.approx(2 * (1 - PSI_FLOOR) * math.log(1 / PSI_FLOOR), rel=1e-12)


@pytest.mark.parametrize("distance", [psi, js])
def test_distance_of_bad_counts_is_refused(distance) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(SketchMismatchError):
        distance([1, 2], [1, 2, 3])
    with pytest.raises(SketchMismatchError):
        distance([[1, 2]], [[1, 2]])
    for bad in ([0, 0], [-1, 2], [math.nan, 1], [math.inf, 1]):
        with pytest.raises(FormatError):
            distance([1, 2], bad)
        with pytest.raises(FormatError):
            distance(bad, [1, 2])
    with pytest.raises(FormatError):
        distance([], [])
