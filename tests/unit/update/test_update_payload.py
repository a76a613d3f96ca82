"""An update keeps its norm bound on the device and is measured again where it arrives."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.errors import FormatError, RoundError
from holdfast.update.bounds import clip_to_norm, measured_norm
from holdfast.update.codecs import CODECS, codec_named
from holdfast.update.payload import make_payload, open_payload

FLOATS = st.floats(-(2.0**40), 2.0**40, width=32)
VALUES = arrays(np.float32, st.integers(1, 300), elements=FLOATS)


def rng() -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(0))


@given(VALUES, st.floats(1e-6, 1e6))
def test_clip_never_exceeds_and_keeps_what_is_small(values: np.ndarray, clip: float) -> None:
    before = values.copy()

    clipped = clip_to_norm(values, clip)

    assert clipped.norm <= clip
    assert clipped.norm == measured_norm(clipped.delta)
    assert clipped.was_clipped == (clipped.norm_before > clip)
    np.testing.assert_array_equal(values, before)
    if not clipped.was_clipped:
        np.testing.assert_array_equal(clipped.delta, values)


def test_clip_keeps_the_direction() -> None:
    clipped = clip_to_norm(np.array([3, 4], np.float32), 1.0)

    np.testing.assert_allclose(clipped.delta, [0.6, 0.8], rtol=1e-5)
    assert clipped.norm_before == 5.0


@pytest.mark.parametrize("clip", [0.0, -1.0, np.nan, np.inf])
def test_clip_refuses_a_bound_that_is_not_positive(clip: float) -> None:
    with pytest.raises(RoundError, match="clip must be"):
        clip_to_norm(np.ones(2, np.float32), clip)


def test_clip_refuses_nan() -> None:
    with pytest.raises(RoundError, match="NaN"):
        clip_to_norm(np.array([np.nan], np.float32), 1.0)


@pytest.mark.parametrize("codec", sorted(CODECS))
@given(values=VALUES, clip=st.floats(1e-3, 1e3))
def test_honest_update_always_opens(codec: str, values: np.ndarray, clip: float) -> None:
    assume(codec != "fixed32-2p20" or min(clip, np.abs(values).max()) < 1.9)  # a larger value is refused when encoded
    payload = make_payload(values, codec=codec, clip=clip, rng=rng())

    delta = open_payload(payload.data, sha256=payload.sha256, codec=codec, count=values.size, clip=clip)

    assert delta.shape == values.shape


def make() -> tuple[np.ndarray, bytes, bytes]:
    values = np.linspace(-1, 1, 300, dtype=np.float32)
    payload = make_payload(values, codec="float32", clip=100.0, rng=rng())
    return values, payload.data, payload.sha256


def test_open_refuses_other_bytes_than_stated() -> None:
    _, data, sha256 = make()

    with pytest.raises(RoundError, match="signed statement"):
        open_payload(data[:-1] + b"\1", sha256=sha256, codec="float32", count=300, clip=100.0)


def test_open_refuses_a_norm_above_the_clip() -> None:
    _, data, sha256 = make()

    with pytest.raises(RoundError, match="norm is"):
        open_payload(data, sha256=sha256, codec="float32", count=300, clip=5.0)


def test_open_refuses_another_length_than_the_layout() -> None:
    _, data, sha256 = make()

    with pytest.raises(FormatError, match="expected"):
        open_payload(data, sha256=sha256, codec="float32", count=299, clip=100.0)


def test_open_refuses_nan() -> None:
    data = np.array([np.nan], "<f4").tobytes()

    with pytest.raises(FormatError, match="finite"):
        open_payload(data, sha256=hashlib.sha256(data).digest(), codec="float32", count=1, clip=1.0)


def test_int8_payload_of_the_digits_model_is_four_times_smaller() -> None:
    assert codec_named("int8-block256-stochastic").encoded_size(8_970) == 8_970 + 4 * 36
