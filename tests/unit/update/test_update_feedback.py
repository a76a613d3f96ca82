"""Error feedback: nothing is lost, only sent later; and the memory of it cannot grow past the clip."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.errors import FormatError, RoundError
from holdfast.update.bounds import measured_norm
from holdfast.update.codecs import codec_named
from holdfast.update.feedback import encode_with_residual

TOP = codec_named("topk10-float32")
VALUES = arrays(np.float32, 25, elements=st.floats(-(2.0**20), 2.0**20, width=32))


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


@given(VALUES, VALUES)
def test_what_is_sent_and_what_is_kept_add_up_exactly(delta: np.ndarray, residual: np.ndarray) -> None:
    split = encode_with_residual(delta, residual, codec=TOP, clip=0.0, rng=rng())

    np.testing.assert_array_equal(TOP.decode(split.data, 25) + split.residual, delta + residual)


@given(VALUES, VALUES, st.floats(1e-3, 1e3))
def test_neither_the_update_nor_the_memory_is_larger_than_the_clip(
    delta: np.ndarray, residual: np.ndarray, clip: float
) -> None:
    split = encode_with_residual(delta, residual, codec=TOP, clip=clip, rng=rng())

    assert measured_norm(TOP.decode(split.data, 25)) <= clip
    assert measured_norm(split.residual) <= clip


def test_a_small_change_is_sent_in_a_later_round() -> None:
    delta = np.full(20, 0.1, np.float32)
    delta[:2] = 1.0
    residual, total = np.zeros(20, np.float32), np.zeros(20, np.float32)

    for _ in range(40):
        split = encode_with_residual(delta, residual, codec=TOP, clip=0.0, rng=rng())
        residual = split.residual
        total += TOP.decode(split.data, 20)

    assert np.all(total > 0)
    np.testing.assert_allclose(total + residual, 40 * delta, rtol=1e-4)


def test_a_residual_of_another_model_is_refused() -> None:
    with pytest.raises(RoundError, match="another model"):
        encode_with_residual(np.ones(3, np.float32), np.ones(4, np.float32), codec=TOP, clip=1.0, rng=rng())


def test_nan_is_refused() -> None:
    with pytest.raises(FormatError):
        encode_with_residual(np.full(3, np.nan, np.float32), np.zeros(3, np.float32), codec=TOP, clip=0.0, rng=rng())
