"""The gRPC codec: any tensor survives the round trip, any broken message ends in a HoldfastError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, MutableMapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from holdfast.errors import HoldfastError, InvalidTensorError, RequestError, UnsupportedError
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving import oip, oip_pb2
from holdfast.serving.datatypes import DTYPE_OF

NUMBERS = [np.dtype(dtype) for dtype in DTYPE_OF.values() if dtype != "string"]
SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray:
    if draw(st.booleans()):
        return draw(npst.arrays(draw(st.sampled_from(NUMBERS)), SHAPES))
    items = draw(npst.arrays(np.dtype(object), SHAPES, elements=st.binary(max_size=20), fill=st.nothing()))
    return items


@given(st.dictionaries(st.text(max_size=10), arrays(), max_size=4), st.text(max_size=20))
def test_request_survives_the_round_trip(inputs: dict[str, np.ndarray], request_id: str) -> None:
    request = TensorRequest("m", "3", request_id, inputs, ("a", "b"))

    got = oip.decode_request(oip.encode_request(request))

    assert (got.model, got.version, got.request_id, got.outputs) == ("m", "3", request_id, ("a", "b"))
    assert_same(got.inputs, inputs)


@given(st.dictionaries(st.text(max_size=10), arrays(), max_size=4))
def test_response_survives_the_round_trip(outputs: dict[str, np.ndarray]) -> None:
    got = oip.decode_response(oip.encode_response(TensorResponse("m", "1", "id", outputs)))

    assert got.request_id == "id"
    assert_same(got.outputs, outputs)


@given(st.binary(max_size=200))
def test_any_bytes_end_in_an_answer_or_an_error(data: bytes) -> None:
    with contextlib.suppress(HoldfastError):
        oip.decode_request(data)


@given(st.data())
def test_any_changed_byte_ends_in_an_answer_or_an_error(data: st.DataObject) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    whole = bytearray(oip.encode_request(TensorRequest("m", "", "id", {"x": x, "w": np.array([b"ab"], object)})))
    whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))

    with contextlib.suppress(HoldfastError):
        oip.decode_request(bytes(whole))


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "expected"),
    [
        ("BOOL", "bool_contents", [True, False], np.array([True, False])),
        ("INT8", "int_contents", [-128, 127], np.array([-128, 127], dtype=np.int8)),
        ("INT16", "int_contents", [-5, 5], np.array([-5, 5], dtype=np.int16)),
        ("INT32", "int_contents", [-5, 5], np.array([-5, 5], dtype=np.int32)),
        ("INT64", "int64_contents", [-(2**63), 5], np.array([-(2**63), 5], dtype=np.int64)),
        ("UINT8", "uint_contents", [0, 255], np.array([0, 255], dtype=np.uint8)),
        ("UINT16", "uint_contents", [0, 65535], np.array([0, 65535], dtype=np.uint16)),
        ("UINT32", "uint_contents", [0, 2**32 - 1], np.array([0, 2**32 - 1], dtype=np.uint32)),
        ("UINT64", "uint64_contents", [0, 2**64 - 1], np.array([0, 2**64 - 1], dtype=np.uint64)),
        ("FP32", "fp32_contents", [1.5, float("inf")], np.array([1.5, np.inf], dtype=np.float32)),
        ("FP64", "fp64_contents", [1e300, -0.0], np.array([1e300, -0.0])),
        ("BYTES", "bytes_contents", [b"", b"\xff"], np.array([b"", b"\xff"], dtype=object)),
    ],
)
def test_typed_contents_are_read(datatype: str, field: str, elements: list[object], expected: np.ndarray) -> None:
    message = oip_pb2.ModelInferRequest(model_name="m")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[2])
    getattr(tensor.contents, field).extend(elements)

    assert_same(oip.decode_request(message.SerializeToString()).inputs, {"x": expected})


Change = Callable[[oip_pb2.ModelInferRequest], None]


def _set(path: str, value: object) -> Change:
    return lambda message: setattr(message.inputs[0], path, value)


DEFECTS: dict[str, tuple[Change, type[HoldfastError], str]] = {
    "raw_one_byte_short": (
        lambda m: m.raw_input_contents.__setitem__(0, b"\0" * 7),
        InvalidTensorError,
        r"expected 8 bytes for FP32\[2\], got 7",
    ),
    "raw_one_entry_more": (lambda m: m.raw_input_contents.append(b""), RequestError, "expected 1 raw_input_contents"),
    "raw_beside_contents": (
        lambda m: m.inputs[0].contents.fp32_contents.append(1.0),
        RequestError,
        "contents beside raw",
    ),
    "datatype_unknown": (_set("datatype", "FP31"), InvalidTensorError, "unknown datatype 'FP31'"),
    "bf16_of_the_wrong_length": (
        _set("datatype", "BF16"),
        InvalidTensorError,
        r"expected 4 bytes for BF16\[2\], got 8",
    ),
    "size_negative": (lambda m: m.inputs[0].shape.__setitem__(0, -2), InvalidTensorError, "below zero"),
    "shape_overflowing": (lambda m: m.inputs[0].shape.extend([2**62] * 4), InvalidTensorError, "more than"),
    "rank_too_high": (lambda m: m.inputs[0].shape.extend([1] * 64), InvalidTensorError, "at most 64 dimensions"),
    "input_twice": (lambda m: _twice(m), InvalidTensorError, "given twice"),
    "region_without_size": (
        lambda m: _parameter(m.inputs[0].parameters["shared_memory_region"]),
        RequestError,
        "shared_memory_region and shared_memory_byte_size go together",
    ),
    "region_where_none_is_offered": (lambda m: _region(m.inputs[0].parameters), UnsupportedError, "not offered here"),
    "output_region_where_none_is_offered": (
        lambda m: _region(m.outputs.add(name="y").parameters),
        UnsupportedError,
        "not offered here",
    ),
    "region_size_negative": (
        lambda m: _region(m.inputs[0].parameters, size=-1),
        RequestError,
        "whole number from 0 to",
    ),
    "classification_is_text": (
        lambda m: _parameter(m.outputs.add(name="y").parameters["classification"]),
        RequestError,
        "expected a whole number",
    ),
    "sequence": (lambda m: _number(m.parameters["sequence_id"], 7), UnsupportedError, "sequences are not offered"),
    "priority_negative": (lambda m: _number(m.parameters["priority"], -1), RequestError, "as priority, got -1"),
    "timeout_of_a_year": (lambda m: _number(m.parameters["timeout"], 10**15), RequestError, "as timeout"),
    "reserved_parameter": (lambda m: _parameter(m.parameters["triton_x"]), RequestError, "is reserved"),
}


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_defect_is_refused_by_name(defect: str) -> None:
    change, kind, text = DEFECTS[defect]
    message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\0" * 8])
    message.inputs.add(name="x", datatype="FP32", shape=[2])
    change(message)

    with pytest.raises(kind, match=text):
        oip.decode_request(message.SerializeToString())


@pytest.mark.parametrize(
    ("datatype", "field", "elements", "text"),
    [
        ("FP32", "int_contents", [1, 2], "expected fp32_contents for FP32, got int_contents"),
        ("FP16", "fp32_contents", [1.0, 2.0], "FP16 must be sent in raw_input_contents"),
        ("INT8", "int_contents", [1, 128], "outside the range of INT8"),
        ("INT64", "int64_contents", [1], r"expected 2 elements for shape \[2\], got 1"),
    ],
)
def test_defective_contents_are_refused(datatype: str, field: str, elements: list[object], text: str) -> None:
    message = oip_pb2.ModelInferRequest(model_name="m")
    getattr(message.inputs.add(name="x", datatype=datatype, shape=[2]).contents, field).extend(elements)

    with pytest.raises(InvalidTensorError, match=text):
        oip.decode_request(message.SerializeToString())


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\1\0\0\0", "at least 8 bytes"),
        (b"\xff\xff\xff\xffabcd", "declares 4294967295 bytes, 4 are left"),
        (b"\0\0\0\0\0\0\0\0x", "expected 2 BYTES elements, got 2 and 1 bytes more"),
        (b"\4\0\0\0abcd\0", "expected 2 BYTES elements, got 1"),
    ],
)
def test_defective_strings_are_refused(raw: bytes, text: str) -> None:
    message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=[raw])
    message.inputs.add(name="x", datatype="BYTES", shape=[2])

    with pytest.raises(InvalidTensorError, match=text):
        oip.decode_request(message.SerializeToString())


def test_bool_bytes_other_than_0_and_1_are_refused() -> None:
    message = oip_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"\1\2"])
    message.inputs.add(name="x", datatype="BOOL", shape=[2])

    with pytest.raises(InvalidTensorError, match="neither 0 nor 1"):
        oip.decode_request(message.SerializeToString())


def assert_same(got: object, expected: object) -> None:
    """Same names, dtypes, shapes and bits (NaN included)."""
    assert isinstance(got, dict)
    assert isinstance(expected, dict)
    assert list(got) == list(expected)
    for name, array in expected.items():
        assert got[name].dtype == array.dtype
        assert got[name].shape == array.shape
        if array.dtype == object:
            assert got[name].tolist() == array.tolist()
        else:
            assert got[name].tobytes() == array.tobytes()


def _twice(message: oip_pb2.ModelInferRequest) -> None:
    message.inputs.add(name="x", datatype="FP32", shape=[2])
    message.raw_input_contents.append(b"\0" * 8)


def _number(parameter: oip_pb2.InferParameter, value: int) -> None:
    parameter.int64_param = value


def _region(parameters: MutableMapping[str, oip_pb2.InferParameter], size: int = 8) -> None:
    parameters["shared_memory_region"].string_param = "r"
    parameters["shared_memory_byte_size"].int64_param = size


def _parameter(value: oip_pb2.InferParameter) -> None:
    value.string_param = "1"
