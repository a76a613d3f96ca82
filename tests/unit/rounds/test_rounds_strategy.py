from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import RoundError
from holdfast_federation.rounds.strategy import WeightedMean

UPDATES = st.lists(
    st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 1_000)), min_size=1, max_size=8, unique_by=lambda u: u[0]
)


def delta(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(17).astype(np.float32)


@given(UPDATES, st.randoms())
@settings(deadline=None)
def test_the_mean_is_that_of_the_definition_in_any_order(updates, random):
    expected = np.average([delta(s).astype(np.float64) for s, _ in updates], axis=0, weights=[n for _, n in updates])
    random.shuffle(updates)
    mean = WeightedMean(17)

    for seed, samples in updates:
        mean.add(delta(seed), samples)

    assert np.allclose(mean.result(), expected, rtol=1e-6, atol=1e-7)


@given(UPDATES)
@settings(deadline=None)
def test_a_mean_resumed_from_its_checkpoint_has_the_same_bits(updates):
    straight, resumed = WeightedMean(17), WeightedMean(17)

    for seed, samples in updates:
        straight.add(delta(seed), samples)
        resumed = WeightedMean.resume(resumed.sums.tobytes(), resumed.weight)
        resumed.add(delta(seed), samples)

    assert resumed.result().tobytes() == straight.result().tobytes()


def test_nothing_has_no_mean():
    with pytest.raises(RoundError, match="no update"):
        WeightedMean(3).result()


@pytest.mark.parametrize(("size", "samples"), [(4, 1), (3, 0)])
def test_an_update_that_does_not_fit_is_refused(size: int, samples: int):
    with pytest.raises(RoundError, match="does not fit"):
        WeightedMean(3).add(np.zeros(size, dtype=np.float32), samples)
