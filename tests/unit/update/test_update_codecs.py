"""The codecs: golden bytes, exact inverse, unbiased rounding, and nothing decoded that was not encoded."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from holdfast.errors import FormatError, RoundError
from holdfast.update.bounds import measured_norm
from holdfast.update.codec_fixed_point import SCALE, FixedPointCodec, exact_sum
from holdfast.update.codecs import CODECS, LEGALITY, check_legal, codec_named

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "update" / "codecs.json").read_text())
INT8, INT4 = "int8-block256-stochastic", "int4-block64-stochastic"
FLOATS = st.floats(-(2.0**60), 2.0**60, width=32)
VALUES = arrays(np.float32, st.integers(0, 600), elements=FLOATS)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize(
    ("case", "name"),
    [pytest.param(case, name, id=f"{case['name']}-{name}") for case in VECTORS for name in case["encoded_hex"]],
)
def test_codec_bytes_are_those_of_the_golden_vector(case: dict[str, Any], name: str) -> None:
    values = np.frombuffer(bytes.fromhex(case["values_hex"]), "<f4")

    encoded = codec_named(name).encode(values, rng(case["seed"]))

    assert encoded.hex() == case["encoded_hex"][name]
    assert len(encoded) == codec_named(name).encoded_size(case["count"])


def test_every_codec_has_golden_vectors() -> None:
    for name in CODECS:
        assert sum(name in case["encoded_hex"] for case in VECTORS) >= 4


@given(VALUES)
def test_float32_round_trip_is_exact(values: np.ndarray) -> None:
    codec = codec_named("float32")

    np.testing.assert_array_equal(codec.decode(codec.encode(values, rng()), values.size), values)


@pytest.mark.parametrize(("name", "block", "top"), [(INT8, 256, 127), (INT4, 64, 7)])
@given(values=VALUES, seed=st.integers(0, 2**32 - 1))
def test_block_codec_error_is_below_one_step_and_norm_within_growth(
    name: str, block: int, top: int, values: np.ndarray, seed: int
) -> None:
    codec = codec_named(name)

    data = codec.encode(values, rng(seed))
    again = codec.decode(data, values.size)

    assert len(data) == codec.encoded_size(values.size)
    for start in range(0, values.size, block):
        part, got = values[start : start + block].astype(float), again[start : start + block].astype(float)
        step = np.abs(part).max() / top
        assert np.abs(got - part).max() <= step * (1 + 1e-5) + 1e-44
    assert measured_norm(again) <= codec.norm_growth * measured_norm(values) + 1e-40


@given(VALUES)
def test_float16_error_is_half_a_unit_in_the_eleventh_digit(values: np.ndarray) -> None:
    codec = codec_named("float16")

    again = codec.decode(codec.encode(values, rng()), values.size).astype(float)

    largest = np.abs(values).max(initial=0.0).astype(float)
    allowed = np.abs(values.astype(float)) * 2.0**-11 + largest * 2.0**-39 + 2.0**-149
    assert np.all(np.abs(again - values) <= allowed)
    assert measured_norm(again.astype(np.float32)) <= codec.norm_growth * measured_norm(values) * (1 + 1e-6) + 1e-40


@given(VALUES)
def test_float16_decoded_values_encode_to_the_same_bytes(values: np.ndarray) -> None:
    codec = codec_named("float16")
    again = codec.decode(codec.encode(values, rng()), values.size)

    np.testing.assert_array_equal(codec.decode(codec.encode(again, rng()), values.size), again)


@pytest.mark.parametrize(("name", "share"), [("topk10-float32", 10), ("topk1-float32", 100)])
@given(values=VALUES)
def test_top_k_sends_the_largest_exactly_and_nothing_else(name: str, share: int, values: np.ndarray) -> None:
    again = codec_named(name).decode(codec_named(name).encode(values, rng()), values.size)

    kept = -(-values.size // share)
    sent = again != 0
    np.testing.assert_array_equal(again[sent], values[sent])
    assert sent.sum() <= kept
    left = np.abs(values[~sent])
    assert sent.sum() == min(kept, np.count_nonzero(values))
    assert not sent.any() or left.max(initial=0.0) <= np.abs(values[sent]).min()


@given(arrays(np.float32, st.integers(0, 200), elements=st.floats(-1.875, 1.875, width=32)))
def test_fixed_point_error_is_half_a_level(values: np.ndarray) -> None:
    codec = codec_named("fixed32-2p20")

    again = codec.decode(codec.encode(values, rng()), values.size)

    assert np.all(np.abs(again.astype(float) - values) <= 2.0**-21)
    assert measured_norm(again) <= codec.norm_growth * measured_norm(values)


@given(
    st.lists(arrays(np.float32, 7, elements=st.floats(-1.875, 1.875, width=32)), min_size=1, max_size=9), st.randoms()
)
def test_fixed_point_sums_are_exact_in_any_order(parts: list[np.ndarray], random: Random) -> None:
    codec = FixedPointCodec()
    encoded = [codec.encode(part, rng()) for part in parts]
    shuffled = random.sample(encoded, len(encoded))

    total = exact_sum(encoded, 7)

    assert total.tobytes() == exact_sum(shuffled, 7).tobytes()
    exact = [sum(Fraction(float(codec.decode(data, 7)[i])) for data in encoded) for i in range(7)]
    assert [Fraction(value) for value in total] == exact
    wrapped = np.sum([codec.levels(data, 7).view(np.uint32) for data in encoded], axis=0, dtype=np.uint32)
    np.testing.assert_array_equal(wrapped.view(np.int32) / SCALE, total)  # masked sums live modulo 2**32


def test_fixed_point_refuses_a_value_out_of_range_and_too_many_parts() -> None:
    codec = FixedPointCodec()

    with pytest.raises(FormatError, match=r"value 1 is outside \+-2 "):
        codec.encode(np.array([0, -2], np.float32), rng())
    with pytest.raises(FormatError, match="outside"):
        codec.decode(np.array([2**21], "<i4").tobytes(), 1)
    with pytest.raises(FormatError, match="more than 1024"):
        exact_sum([codec.encode(np.ones(1, np.float32), rng())] * 1025, 1)


@given(VALUES)
def test_int8_decoded_values_encode_to_levels_that_decode_the_same(values: np.ndarray) -> None:
    codec = codec_named(INT8)

    data = codec.encode(values, rng(1))

    np.testing.assert_array_equal(codec.decode(data, values.size), codec.decode(data, values.size))
    assert codec.encode(values, rng(1)) == data


@pytest.mark.parametrize(("name", "block", "top"), [(INT8, 256, 127), (INT4, 64, 7)])
def test_block_codec_is_unbiased(name: str, block: int, top: int) -> None:
    codec = codec_named(name)
    values = np.random.default_rng(3).standard_normal(512).astype(np.float32)
    generator, runs = rng(5), 2_000

    mean = np.mean([codec.decode(codec.encode(values, generator), 512) for _ in range(runs)], axis=0)

    step = np.abs(values.reshape(-1, block)).max(axis=1).repeat(block) / top
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


@pytest.mark.parametrize(
    ("defect", "name", "data", "count"),
    [
        ("level_minus_8", INT4, np.float32(1).tobytes() + b"\x08", 2),
        ("half_byte_after_the_end", INT4, np.float32(1).tobytes() + b"\x11", 1),
        ("level_under_scale_zero", INT4, bytes(4) + b"\x01", 1),
        ("exponent_too_small_for_values", "float16", b"\0\0" + np.float16(1).tobytes(), 1),
        ("exponent_of_zeros", "float16", b"\1\0" + bytes(2), 1),
        ("half_infinite", "float16", b"\0\0" + np.float16(np.inf).tobytes(), 1),
        ("half_nan", "float16", b"\0\0" + np.float16(np.nan).tobytes(), 1),
        ("exponent_overflows", "float16", b"\x7f\0" + np.float16(2**14).tobytes(), 1),
        ("bitmap_marks_too_many", "topk10-float32", b"\x03" + np.float32(1).tobytes(), 3),
        ("bitmap_marks_none", "topk10-float32", b"\x00" + np.float32(1).tobytes(), 3),
        ("bitmap_marks_past_the_end", "topk10-float32", b"\x08" + np.float32(1).tobytes(), 3),
        ("index_past_the_end", "topk1-float32", np.uint32(100).tobytes() + np.float32(1).tobytes(), 100),
        ("indices_fall", "topk1-float32", np.array([7, 6], "<u4").tobytes() + bytes(8), 200),
        ("indices_repeat", "topk1-float32", np.array([7, 7], "<u4").tobytes() + bytes(8), 200),
        ("value_nan", "topk1-float32", np.uint32(0).tobytes() + np.float32(np.nan).tobytes(), 100),
    ],
)
def test_decode_refuses(defect: str, name: str, data: bytes, count: int) -> None:
    with pytest.raises(FormatError):
        codec_named(name).decode(data, count)


@pytest.mark.parametrize("name", [INT8, "float16"])
def test_encode_refuses_a_diverged_update(name: str) -> None:
    with pytest.raises(FormatError, match="diverged"):
        codec_named(name).encode(np.array([np.finfo(np.float32).max], np.float32), rng())


def test_unknown_codec_is_refused_by_name() -> None:
    with pytest.raises(FormatError, match="'gzip'"):
        codec_named("gzip")


def test_legality_table_names_only_known_codecs_and_refuses_the_rest() -> None:
    assert {codec for codec, _ in LEGALITY} == set(CODECS)
    check_legal(INT8, "weighted_mean")
    check_legal("fixed32-2p20", "secure_sum")

    for name in set(CODECS) - {"fixed32-2p20"}:
        with pytest.raises(RoundError, match="secure_sum"):
            check_legal(name, "secure_sum")
