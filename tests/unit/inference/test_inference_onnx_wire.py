"""The wire walk finds what a model names, and never crashes on what is no model."""

from __future__ import annotations

import contextlib

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import served_models as models

from holdfast.errors import ModelError
from holdfast.inference.example_model import digits_model
from holdfast.inference.onnx_wire import external_locations, field_bytes, field_varint


def test_walk_finds_external_files() -> None:
    model, _ = models.with_external_weight("deep/weights.bin")

    assert external_locations(model) == ("deep/weights.bin",)
    assert external_locations(models.perceptron()) == ()


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_walk_names_a_truncated_file(cut: int) -> None:
    with pytest.raises(ModelError, match="truncated"):
        external_locations(models.perceptron()[:-cut])


@given(st.binary(max_size=300))
def test_walk_survives_any_bytes(data: bytes) -> None:
    with contextlib.suppress(ModelError):
        external_locations(data)


@given(st.integers(0, 2000), st.integers(0, 255))
def test_walk_survives_any_flipped_byte(position: int, value: int) -> None:
    data = bytearray(models.with_external_weight()[0])
    data[position % len(data)] = value

    with contextlib.suppress(ModelError):
        external_locations(bytes(data))


@given(st.integers(-(2**63), 2**63 - 1))
def test_written_numbers_are_read_back_by_protobuf(number: int) -> None:
    # a dimension of a TensorProto is an int64
    assert list(onnx.TensorProto.FromString(field_varint(1, number)).dims) == [number]


@given(st.text(max_size=300))
def test_written_text_is_read_back_by_protobuf(text: str) -> None:
    assert onnx.TensorProto.FromString(field_bytes(8, text)).name == text


def test_example_is_a_model_by_the_onnx_checker() -> None:
    onnx.checker.check_model(onnx.load_from_string(digits_model()), full_check=True)
