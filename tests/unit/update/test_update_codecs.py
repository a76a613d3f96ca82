"""The codecs: golden bytes, exact inverse, unbiased rounding, and nothing decoded that was not encoded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.errors import FormatError, RoundError
from holdfast.update.bounds import measured_norm
from holdfast.update.codecs import CODECS, LEGALITY, check_legal, codec_named

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "update" / "codecs.json").read_text())
INT8 = "int8-block256-stochastic"
FLOATS = st.floats(-(2.0**60), 2.0**60, width=32)
VALUES = arrays(np.float32, st.integers(0, 600), elements=FLOATS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_int8_bytes_are_those_of_the_golden_vector(case: dict[str, object]) -> None:
    values = np.frombuffer(bytes.fromhex(str(case["values_hex"])), "<f4")

    encoded = codec_named(INT8).encode(values, rng(7))

    assert encoded.hex() == case["int8_block256_hex"]


@pytest.mark.parametrize("case", VECTORS, ids=[case["name"] for case in VECTORS])
def test_float32_bytes_are_the_values(case: dict[str, object]) -> None:
    values = np.frombuffer(bytes.fromhex(str(case["values_hex"])), "<f4")

    assert codec_named("float32").encode(values, rng()).hex() == case["values_hex"]


@given(VALUES)
def test_float32_round_trip_is_exact(values: np.ndarray) -> None:
    codec = codec_named("float32")

    np.testing.assert_array_equal(codec.decode(codec.encode(values, rng()), values.size), values)


@given(VALUES, st.integers(0, 2**32 - 1))
def test_int8_error_is_below_one_step_and_norm_within_growth(values: np.ndarray, seed: int) -> None:
    codec = codec_named(INT8)

    data = codec.encode(values, rng(seed))
    again = codec.decode(data, values.size)

    assert len(data) == codec.encoded_size(values.size)
    for start in range(0, values.size, 256):
        block, got = values[start : start + 256].astype(float), again[start : start + 256].astype(float)
        step = np.abs(block).max() / 127
        assert np.abs(got - block).max() <= step * (1 + 1e-5) + 1e-44
    assert measured_norm(again) <= codec.norm_growth * measured_norm(values) + 1e-40


@given(VALUES)
def test_int8_decoded_values_encode_to_levels_that_decode_the_same(values: np.ndarray) -> None:
    codec = codec_named(INT8)

    data = codec.encode(values, rng(1))

    np.testing.assert_array_equal(codec.decode(data, values.size), codec.decode(data, values.size))
    assert codec.encode(values, rng(1)) == data


def test_int8_is_unbiased() -> None:
    codec = codec_named(INT8)
    values = np.random.default_rng(3).standard_normal(512).astype(np.float32)
    generator, runs = rng(5), 2_000

    mean = np.mean([codec.decode(codec.encode(values, generator), 512) for _ in range(runs)], axis=0)

    step = np.abs(values.reshape(2, 256)).max(axis=1).repeat(256) / 127
    # the standard error of one element is at most step/2/sqrt(runs); 5 of them over 512 elements
    assert np.all(np.abs(mean - values) < 5 * step / 2 / np.sqrt(runs))


def test_int8_keeps_the_largest_value_of_a_block_within_one_step_of_rounding() -> None:
    values = np.array([3.0, -3.0], np.float32)

    again = codec_named(INT8).decode(codec_named(INT8).encode(values, rng()), 2)

    np.testing.assert_allclose(again, values, rtol=1e-2)


@pytest.mark.parametrize("name", sorted(CODECS))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_encode_refuses_values_that_are_not_finite(name: str, bad: float) -> None:
    with pytest.raises(FormatError, match="value 1 is"):
        codec_named(name).encode(np.array([0, bad], np.float32), rng())


@pytest.mark.parametrize("name", sorted(CODECS))
def test_encode_refuses_other_dtypes_and_ranks(name: str) -> None:
    for values in (np.zeros(2, np.float64), np.zeros((2, 1), np.float32)):
        with pytest.raises(FormatError):
            codec_named(name).encode(values, rng())


@pytest.mark.parametrize("name", sorted(CODECS))
@given(cut=st.integers(-3, 3).filter(bool), count=st.integers(1, 300))
def test_decode_refuses_a_wrong_length(name: str, cut: int, count: int) -> None:
    codec = codec_named(name)
    data = codec.encode(np.ones(count, np.float32), rng())
    data = data[:cut] if cut < 0 else data + b"\0" * cut

    with pytest.raises(FormatError, match="expected"):
        codec.decode(data, count)


@pytest.mark.parametrize("name", sorted(CODECS))
@given(data=st.binary(min_size=600, max_size=600), count=st.sampled_from([150, 592]))
def test_decode_of_any_bytes_is_finite_or_refused(name: str, data: bytes, count: int) -> None:
    codec = codec_named(name)

    try:
        values = codec.decode(data[: codec.encoded_size(count)], count)
    except FormatError:
        return

    assert np.all(np.isfinite(values))
    assert values.shape == (count,)


@pytest.mark.parametrize(
    ("defect", "scale", "level"),
    [
        ("scale_nan", np.nan, 1),
        ("scale_infinite", np.inf, 1),
        ("scale_negative", -1.0, 1),
        ("scale_minus_zero", -0.0, 0),
        ("level_minus_128", 1.0, -128),
        ("level_under_scale_zero", 0.0, 1),
        ("product_overflows", 3e38, 127),
    ],
)
def test_int8_decode_refuses(defect: str, scale: float, level: int) -> None:
    data = np.array([scale], "<f4").tobytes() + np.array([level], np.int8).tobytes()

    with pytest.raises(FormatError):
        codec_named(INT8).decode(data, 1)


def test_int8_encode_refuses_a_diverged_update() -> None:
    with pytest.raises(FormatError, match="diverged"):
        codec_named(INT8).encode(np.array([np.finfo(np.float32).max], np.float32), rng())


def test_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="'gzip'"):
        codec_named("gzip")


def test_legality_table_names_only_known_codecs_and_refuses_the_rest() -> None:
    assert {codec for codec, _ in LEGALITY} == set(CODECS)
    check_legal(INT8, "weighted_mean")

    with pytest.raises(RoundError, match="secure_sum"):
        check_legal(INT8, "secure_sum")
