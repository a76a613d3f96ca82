"""The Open Inference Protocol over HTTP: JSON, and its binary tensor extension. Pure: bytes in, values out.

Rules: `Inference-Header-Content-Length` splits a body into JSON and raw tensors in the order of the inputs; 0 means a
raw body that is the model's only input. An output goes out raw if its `binary_data`, else the request's
`binary_data_output`, says so. Numbers that JSON cannot carry (NaN, infinity) are refused, never written.
Source: Open Inference Protocol v2 REST and the binary tensor data extension.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from holdfast.errors import InvalidTensorError, RequestError
from holdfast.inference.pool import ServedModel
from holdfast.inference.tensors import BFLOAT16, STRING, Array, TensorRequest, TensorResponse, TensorSpec, numpy_dtype
from holdfast.serving.classification import classified
from holdfast.serving.datatypes import DATATYPE_OF, datatype_of, from_elements, from_raw, object_array, to_raw
from holdfast.serving.oip import (
    MAX_TENSORS,
    offered,
)
from holdfast.serving.parameters import (
    BINARY_OUTPUT,
    BINARY_OUTPUTS,
    BINARY_SIZE,
    REGION,
    REGION_OFFSET,
    REGION_SIZE,
    InferCall,
    OutputForm,
    flag,
    output_form,
    queue_terms,
    region_slice,
)
from holdfast.serving.shared_memory import SharedMemory

MAX_JSON_BYTES = 16 * 1024**2  # parsed JSON takes 4 to 10 times its size in memory; larger tensors go binary


@dataclass(frozen=True, slots=True)
class JsonBody:
    """A response body. `header_length` is the length of its JSON part if raw tensors follow."""

    data: bytes
    header_length: int | None


def decode_infer(
    body: bytes | memoryview, header_length: int | None, model: str, version: str, regions: SharedMemory | None = None
) -> InferCall:
    """A request and the form its outputs are wanted in. `regions` = None: shared memory is not offered.

    Raises:
        RequestError: not JSON, or not the protocol's fields.
        InvalidTensorError: a tensor is not what it says it is.
        UnsupportedError: it asks for what this server does not offer.
    """
    split = len(body) if header_length is None else header_length
    if split > len(body):
        raise RequestError(f"Inference-Header-Content-Length is {split}, but the body has {len(body)} bytes")
    top = as_object(parse(body[:split]), "the request")
    request_id = as_text(top.get("id", ""), "id")
    parameters = as_object(top.get("parameters", {}), "parameters")
    priority, timeout_s = queue_terms(parameters)
    inputs: dict[str, Array] = {}
    rest = memoryview(body)[split:]
    for entry in _list(top.get("inputs"), "inputs"):
        name, array, used = _input(as_object(entry, "an input"), rest, regions)
        if name in inputs:
            raise InvalidTensorError(f"input '{name}' is given twice")
        inputs[name] = array
        rest = rest[used:]
    if len(rest):
        raise RequestError(f"{len(rest)} bytes of binary data are left over after the last input")
    requested = [as_object(entry, "an output") for entry in _list(top.get("outputs", []), "outputs")]
    names = tuple(as_text(entry.get("name"), "name of an output") for entry in requested)
    default_binary = flag(parameters.get(BINARY_OUTPUTS, False), BINARY_OUTPUTS)
    parameters_of = {
        name: as_object(entry.get("parameters", {}), f"parameters of output '{name}'")
        for name, entry in zip(names, requested, strict=True)
    }
    form = output_form(parameters_of, default_binary=default_binary)
    if form.region_of:
        offered(regions)
    return InferCall(TensorRequest(model, version, request_id, inputs, names), form, priority, timeout_s)


def decode_raw_infer(body: bytes | memoryview, served: ServedModel, version: str) -> InferCall:
    """A request whose whole body is the model's only input; all outputs go out raw.

    Raises:
        InvalidTensorError: the model has several inputs, or its shape cannot be told from the body's length.
    """
    if len(served.session.inputs) != 1:
        raise InvalidTensorError(
            f"a raw body needs a model with one input; '{served.name}' has {len(served.session.inputs)}"
        )
    (spec,) = served.session.inputs
    if spec.dtype == STRING:
        array = object_array([bytes(body)], (1,) * len(spec.shape))
    else:
        array = from_raw(spec.name, DATATYPE_OF[spec.dtype], _deduced_shape(spec, len(body)), body)
    return InferCall(TensorRequest(served.name, version, "", {spec.name: array}), OutputForm(default_binary=True))


def encode_response(response: TensorResponse, form: OutputForm, regions: SharedMemory | None = None) -> JsonBody:
    """A response body.

    Raises:
        InvalidTensorError: an output that is wanted as JSON holds what JSON cannot carry.
        RequestError: an output cannot go out as it was asked for.
    """
    top: dict[str, object] = {"model_name": response.model, "model_version": response.version}
    if response.request_id:
        top["id"] = response.request_id
    raws: list[bytes] = []
    outputs: list[dict[str, object]] = []
    for name, array in response.outputs.items():
        if name in form.classes_of:
            array = classified(name, array, form.classes_of[name], response.labels)
        entry: dict[str, object] = {"name": name, "datatype": datatype_of(array), "shape": list(array.shape)}
        place = form.region_of.get(name)
        if place is not None:
            raw = to_raw(array)
            offered(regions).write(place, raw)
            entry["parameters"] = {REGION: place.region, REGION_SIZE: len(raw), REGION_OFFSET: place.offset}
        elif form.is_binary(name):
            raws.append(to_raw(array))
            entry["parameters"] = {BINARY_SIZE: len(raws[-1])}
        else:
            entry["data"] = elements(name, array)
        outputs.append(entry)
    top["outputs"] = outputs
    header = json.dumps(top, separators=(",", ":")).encode()
    return JsonBody(b"".join((header, *raws)), len(header) if raws else None)


def error_body(text: str) -> bytes:
    """The body of every answer that is not 200."""
    return json.dumps({"error": text}).encode()


def parse(data: bytes | memoryview) -> object:
    """The JSON value of a body.

    Raises:
        RequestError: it is too large, nested too deeply, or not JSON.
    """
    if len(data) > MAX_JSON_BYTES:
        raise RequestError(
            f"{len(data)} bytes of JSON, at most {MAX_JSON_BYTES} are parsed; send tensors as binary data"
        )
    try:
        value: object = json.loads(str(data, "utf-8"))
    except RecursionError as error:
        raise RequestError("the JSON is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise RequestError(f"the body is not JSON at byte {error.pos}: {error.msg}") from error
    except UnicodeDecodeError as error:
        raise RequestError("the body is not JSON: not UTF-8") from error
    except ValueError as error:
        raise RequestError("the body is not JSON: a number has too many digits") from error
    return value


def as_object(value: object, what: str) -> Mapping[str, object]:
    """The value as a JSON object.

    Raises:
        RequestError: it is something else.
    """
    if not isinstance(value, dict):
        raise RequestError(f"expected an object as {what}, got {type(value).__name__}")
    return value


def as_text(value: object, what: str) -> str:
    """The value as a string.

    Raises:
        RequestError: it is something else.
    """
    if not isinstance(value, str):
        raise RequestError(f"expected a string as {what}, got {type(value).__name__}")
    return value


def flat(name: str, data: object) -> list[object]:
    """Row-major elements of nested lists. Rows of unequal length are allowed by the protocol; the shape decides.

    Raises:
        InvalidTensorError: no list, or lists beside elements.
    """
    if not isinstance(data, list):
        raise InvalidTensorError(f"input '{name}': expected a list as data, got {type(data).__name__}")
    flat: list[object] = data
    while any(isinstance(item, list) for item in flat):
        if not all(isinstance(item, list) for item in flat):
            raise InvalidTensorError(f"input '{name}': lists beside elements in data")
        flat = [element for row in flat if isinstance(row, list) for element in row]
    return flat


def elements(name: str, array: Array) -> list[object]:
    """Row-major elements of an output.

    Raises:
        InvalidTensorError: it holds what JSON cannot carry.
    """
    flat: list[object] = array.ravel().tolist()
    if array.dtype == np.object_:
        try:
            return [bytes(item).decode("utf-8") for item in array.ravel().tolist()]
        except UnicodeDecodeError as error:
            raise InvalidTensorError(f"output '{name}' is not UTF-8; ask for it with {BINARY_OUTPUT}") from error
    if array.dtype == BFLOAT16:
        raise InvalidTensorError(f"output '{name}' is BF16, which has no JSON form; ask for it with {BINARY_OUTPUT}")
    if array.dtype.kind == "f" and not bool(np.isfinite(array).all()):
        raise InvalidTensorError(
            f"output '{name}' holds NaN or infinity, which JSON cannot carry; ask for it with {BINARY_OUTPUT}"
        )
    return flat


def _input(entry: Mapping[str, object], rest: memoryview, regions: SharedMemory | None) -> tuple[str, Array, int]:
    """Name, array and how many of the binary bytes it took."""
    name = as_text(entry.get("name"), "name of an input")
    datatype = as_text(entry.get("datatype"), f"datatype of input '{name}'")
    shape = [_size(size, name) for size in _list(entry.get("shape"), f"shape of input '{name}'")]
    parameters = as_object(entry.get("parameters", {}), f"parameters of input '{name}'")
    place = region_slice(parameters, f"input '{name}'")
    if place is not None:
        if "data" in entry or BINARY_SIZE in parameters:
            raise RequestError(f"input '{name}' has data beside a shared memory region; use one of them")
        return name, from_raw(name, datatype, shape, offered(regions).read(place)), 0
    if BINARY_SIZE not in parameters:
        if "data" not in entry:
            raise InvalidTensorError(f"input '{name}': expected data, or {BINARY_SIZE} and bytes after the JSON")
        return name, from_elements(name, datatype, shape, flat(name, entry["data"])), 0
    if "data" in entry:
        raise InvalidTensorError(f"input '{name}' has data beside {BINARY_SIZE}; use one of them")
    size = _size(parameters[BINARY_SIZE], name)
    if size < 0 or size > len(rest):
        raise InvalidTensorError(f"input '{name}': {BINARY_SIZE} is {size}, but {len(rest)} bytes are left")
    return name, from_raw(name, datatype, shape, rest[:size]), size


def _deduced_shape(spec: TensorSpec, size_bytes: int) -> tuple[int, ...]:
    count = size_bytes // numpy_dtype(spec.dtype).itemsize
    fixed = math.prod(size for size in spec.shape if size is not None)
    unknown = spec.shape.count(None)
    if unknown > 1 or (unknown == 1 and (fixed == 0 or count % fixed)):
        raise InvalidTensorError(f"input '{spec.name}': its shape cannot be told from {size_bytes} raw bytes")
    return tuple(count // fixed if size is None else size for size in spec.shape)


def _list(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise RequestError(f"expected a list as {what}, got {type(value).__name__}")
    if len(value) > MAX_TENSORS:
        raise RequestError(f"expected at most {MAX_TENSORS} entries as {what}, got {len(value)}")
    return value


def _size(value: object, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidTensorError(f"input '{name}': expected a whole number as a size, got {type(value).__name__}")
    return value
