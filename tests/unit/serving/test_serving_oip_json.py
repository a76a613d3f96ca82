"""The HTTP codec: JSON and binary, any tensor there and back, any defect named."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from onnx import TensorProto
from tests.fakes import served_models as models
from tests.fakes.serving import pool_of

from holdfast.errors import HoldfastError, InvalidTensorError, RequestError
from holdfast.inference.tensors import TensorResponse
from holdfast.serving import oip_json
from holdfast.serving.datatypes import DATATYPE_OF, DTYPE_OF, to_raw
from holdfast.serving.parameters import OutputForm

KEYS = st.sampled_from(["inputs", "name", "shape", "data", "datatype", "parameters", "id"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner),
)
SHAPES = npst.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)


@st.composite
def finite_arrays(draw: st.DrawFn) -> np.ndarray:
    dtype = np.dtype(draw(st.sampled_from([dtype for dtype in DTYPE_OF.values() if dtype != "string"])))
    elements = {"allow_nan": False, "allow_infinity": False} if dtype.kind == "f" else {}
    return draw(npst.arrays(dtype, SHAPES, elements=elements))


@given(finite_arrays(), st.booleans())
def test_output_is_read_back_bit_for_bit(array: np.ndarray, binary: bool) -> None:
    response = TensorResponse("m", "1", "7", {"y": array})

    body = oip_json.encode_response(response, OutputForm(default_binary=binary))

    top = json.loads(body.data[: body.header_length])
    (entry,) = top["outputs"]
    assert (top["id"], entry["shape"]) == ("7", list(array.shape))
    entry.pop("parameters", None)
    if binary:
        entry["parameters"] = {"binary_data_size": array.nbytes}
    header = json.dumps({"inputs": [entry]}).encode()
    raw = body.data[body.header_length :] if binary else b""
    request = oip_json.decode_infer(header + raw, len(header), "m", "").request
    assert request.inputs["y"].dtype == array.dtype
    assert request.inputs["y"].tobytes() == array.tobytes()


@given(JSON)
def test_any_json_ends_in_an_answer_or_an_error(value: object) -> None:
    for top in (value, {"inputs": value}, {"inputs": [value]}, {"inputs": [], "outputs": value}):
        with contextlib.suppress(HoldfastError):
            oip_json.decode_infer(json.dumps(top).encode(), None, "m", "")


@given(st.binary(max_size=100), st.integers(0, 120))
def test_any_bytes_end_in_an_answer_or_an_error(data: bytes, header_length: int) -> None:
    with contextlib.suppress(HoldfastError):
        oip_json.decode_infer(data, header_length, "m", "")


def entry(**changes: object) -> dict[str, object]:
    return {"name": "x", "datatype": "INT32", "shape": [2], "data": [1, 2]} | changes


DEFECTS: dict[str, tuple[object, str]] = {
    "top_is_a_list": ([], "expected an object as the request, got list"),
    "inputs_missing": ({}, "expected a list as inputs, got NoneType"),
    "input_without_name": ({"inputs": [{"shape": [1]}]}, "expected a string as name of an input"),
    "shape_with_text": ({"inputs": [entry(shape=["2"])]}, "expected a whole number as a size, got str"),
    "shape_with_true": ({"inputs": [entry(shape=[True])]}, "expected a whole number as a size, got bool"),
    "one_element_short": ({"inputs": [entry(data=[1])]}, r"expected 2 elements for shape \[2\], got 1"),
    "fraction_for_integer": ({"inputs": [entry(data=[1, 2.5])]}, "elements of INT32 cannot be float"),
    "text_for_number": ({"inputs": [entry(data=["1", "2"])]}, "elements of INT32 cannot be str"),
    "number_for_bool": ({"inputs": [entry(datatype="BOOL", data=[1, 0])]}, "elements of BOOL cannot be int"),
    "null_element": ({"inputs": [entry(data=[1, None])]}, "cannot be NoneType"),
    "integer_too_large": ({"inputs": [entry(data=[1, 2**31])]}, "outside the range of INT32"),
    "negative_for_unsigned": ({"inputs": [entry(datatype="UINT8", data=[-1, 1])]}, "outside the range of UINT8"),
    "fp16_too_large": ({"inputs": [entry(datatype="FP16", data=[1, 1e6])]}, "outside the range of FP16"),
    "lists_beside_elements": ({"inputs": [entry(data=[[1], 2])]}, "lists beside elements"),
    "data_is_text": ({"inputs": [entry(data="12")]}, "expected a list as data, got str"),
    "data_missing": ({"inputs": [{"name": "x", "datatype": "INT32", "shape": [2]}]}, "expected data, or binary"),
    "binary_beside_data": ({"inputs": [entry(parameters={"binary_data_size": 0})]}, "data beside binary_data_size"),
    "number_for_text": ({"inputs": [entry(datatype="BYTES")]}, "expected text elements, got int"),
    "lone_surrogate": ({"inputs": [entry(datatype="BYTES", shape=[1], data=["\ud800"])]}, "not valid Unicode"),
    "output_flag_is_text": (
        {"inputs": [], "outputs": [{"name": "y", "parameters": {"binary_data": "yes"}}]},
        "expected true or false",
    ),
}


@pytest.mark.parametrize("defect", sorted(DEFECTS))
def test_defect_is_refused_by_name(defect: str) -> None:
    top, text = DEFECTS[defect]

    with pytest.raises(RequestError, match=text):
        oip_json.decode_infer(json.dumps(top).encode(), None, "m", "")


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "not JSON at byte 0"),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"inputs":[],"inputs":' + b"1" * 5_000 + b"}", "not JSON|expected a list"),
    ],
)
def test_body_that_is_not_json_is_refused(body: bytes, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        oip_json.decode_infer(body, None, "m", "")


@pytest.mark.parametrize(
    ("raw", "text"), [(b"1234567", "but 7 bytes are left"), (b"123456789", "1 bytes .* left over")]
)
def test_binary_bytes_must_add_up(raw: bytes, text: str) -> None:
    header = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}]}
    ).encode()

    with pytest.raises(RequestError, match=text):
        oip_json.decode_infer(header + raw, len(header), "m", "")


def test_header_length_past_the_body_is_refused() -> None:
    with pytest.raises(RequestError, match="is 9, but the body has 2 bytes"):
        oip_json.decode_infer(b"{}", 9, "m", "")


def test_nested_and_flat_data_mean_the_same() -> None:
    for data in ([[1, 2], [3, 4]], [1, 2, 3, 4]):
        body = json.dumps({"inputs": [entry(shape=[2, 2], data=data)]}).encode()

        request = oip_json.decode_infer(body, None, "m", "").request

        assert request.inputs["x"].tolist() == [[1, 2], [3, 4]]


def test_output_form_follows_the_output_then_the_request() -> None:
    top = {
        "parameters": {"binary_data_output": True},
        "inputs": [],
        "outputs": [{"name": "a", "parameters": {"binary_data": False}}, {"name": "b"}],
    }

    call = oip_json.decode_infer(json.dumps(top).encode(), None, "m", "")
    request, form = call.request, call.form

    assert request.outputs == ("a", "b")
    assert (form.is_binary("a"), form.is_binary("b")) == (False, True)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_carries_what_is_not_a_number(value: float) -> None:
    response = TensorResponse("m", "1", "", {"y": np.array([value], dtype=np.float32)})

    with pytest.raises(InvalidTensorError, match="ask for it with binary_data"):
        oip_json.encode_response(response, OutputForm())

    assert oip_json.encode_response(response, OutputForm(default_binary=True)).header_length


@pytest.mark.parametrize(
    ("onnx_type", "shape", "body", "expected"),
    [
        (TensorProto.FLOAT, ("n", 4), bytes(32), [[0.0] * 4] * 2),
        (TensorProto.INT64, (2,), bytes(16), [0, 0]),
        (TensorProto.STRING, (1,), b"any bytes", [b"any bytes"]),
    ],
)
def test_raw_body_is_the_only_input(
    onnx_type: int, shape: tuple[int | str, ...], body: bytes, expected: object
) -> None:
    served = pool_of({"m": models.identity(onnx_type, shape)}).get("m")

    call = oip_json.decode_raw_infer(body, served, "")
    request, form = call.request, call.form

    assert request.inputs["x"].tolist() == expected
    assert form.is_binary("y")


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        (models.identity(), bytes(17), "cannot be told|expected 16 bytes"),
        (models.identity(), bytes(20), "cannot be told from 20 raw bytes"),
        (models.identity(TensorProto.FLOAT, ("n", "m")), bytes(16), "cannot be told"),
        (models.two_in_two_out(), bytes(16), "needs a model with one input; 'm' has 2"),
    ],
)
def test_raw_body_without_a_certain_shape_is_refused(model: bytes, body: bytes, text: str) -> None:
    served = pool_of({"m": model}).get("m")

    with pytest.raises(InvalidTensorError, match=text):
        oip_json.decode_raw_infer(body, served, "")


def test_every_datatype_has_one_dtype() -> None:
    assert {DATATYPE_OF[dtype]: dtype for dtype in DTYPE_OF.values()} == DTYPE_OF
    assert to_raw(np.array([b"ab"], dtype=object)) == b"\2\0\0\0ab"
