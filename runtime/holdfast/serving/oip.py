"""The Open Inference Protocol's gRPC messages, to and from tensors. Pure: bytes in, values out.

Rules: raw contents for all inputs or for none, one entry per input outside shared memory, in their order; lengths
are checked before memory is taken; the id is echoed; no requested outputs means all.
Source: Open Inference Protocol v2 gRPC and its binary tensor rules; Triton's `grpc_service.proto` for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.errors import InvalidTensorError, RequestError, UnsupportedError
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse
from holdfast.serving import oip_pb2
from holdfast.serving.classification import classified
from holdfast.serving.datatypes import datatype_of, dtype_of, from_elements, from_raw, to_raw
from holdfast.serving.parameters import (
    REGION,
    REGION_OFFSET,
    REGION_SIZE,
    InferCall,
    OutputForm,
    RegionSlice,
    output_form,
    queue_terms,
    region_slice,
)
from holdfast.serving.shared_memory import SharedMemory

MAX_TENSORS = 1_024  # inputs or outputs of one request; models have a handful
FINAL_RESPONSE = "triton_final_response"  # the parameter that tells the last answer of a streamed request
_PLAIN = OutputForm()

_CONTENTS_OF = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

M = TypeVar("M", bound=Message)


def parse(kind: type[M], data: bytes) -> M:
    """One protobuf message.

    Raises:
        RequestError: the bytes are not such a message.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise RequestError(f"the request is not a {kind.DESCRIPTOR.full_name} message") from error


def decode_infer(data: bytes, regions: SharedMemory | None = None) -> InferCall:
    """A request from the bytes of a ModelInferRequest. `regions` = None: shared memory is not offered.

    Raises:
        RequestError: not such a message, or the rules of raw contents, shared memory or parameters are broken.
        InvalidTensorError: a tensor is not what it says it is.
        UnsupportedError: it asks for what this server does not offer.
    """
    message = parse(oip_pb2.ModelInferRequest, data)
    try:
        return _read(message, regions)
    except RequestError as error:
        error.about = (message.model_name, message.model_version)
        raise


def _read(message: oip_pb2.ModelInferRequest, regions: SharedMemory | None) -> InferCall:
    if len(message.inputs) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise RequestError(f"expected at most {MAX_TENSORS} inputs and outputs")
    priority, timeout_s = queue_terms(_plain(message.parameters)) if message.parameters else (0, None)
    inputs: dict[str, Array] = {}
    raws = iter(message.raw_input_contents)
    in_regions = 0
    for tensor in message.inputs:
        if tensor.name in inputs:
            raise InvalidTensorError(f"input '{tensor.name}' is given twice")
        place = region_of(tensor)
        if place is not None:
            in_regions += 1
            if tensor.HasField("contents"):
                raise RequestError(f"input '{tensor.name}' has contents beside a shared memory region; use one of them")
            raw = offered(regions).read(place)
            inputs[tensor.name] = from_raw(tensor.name, tensor.datatype, tensor.shape, raw)
        else:
            inputs[tensor.name] = _sent(message, tensor, raws)
    if message.raw_input_contents and len(message.raw_input_contents) != len(message.inputs) - in_regions:
        raise RequestError(_raw_count(message, in_regions))
    form = form_of(message)
    if form.region_of:
        offered(regions)
    names = tuple(output.name for output in message.outputs)
    request = TensorRequest(message.model_name, message.model_version, message.id, inputs, names)
    return InferCall(request, form, priority, timeout_s)


def region_of(tensor: oip_pb2.ModelInferRequest.InferInputTensor) -> RegionSlice | None:
    """Where in shared memory an input lies, if it does.

    Raises:
        RequestError: its parameters are incomplete or of the wrong type.
    """
    return region_slice(_plain(tensor.parameters), f"input '{tensor.name}'") if tensor.parameters else None


def form_of(message: oip_pb2.ModelInferRequest) -> OutputForm:
    """How the outputs are to go out.

    Raises:
        RequestError: a parameter of the wrong type or range, or two that exclude each other.
    """
    if not any(output.parameters for output in message.outputs):
        return OutputForm()
    return output_form({output.name: _plain(output.parameters) for output in message.outputs})


def decode_request(data: bytes) -> TensorRequest:
    """The tensors of a ModelInferRequest, without shared memory; see `decode_infer`."""
    return decode_infer(data).request


def encode_response(response: TensorResponse, form: OutputForm = _PLAIN, regions: SharedMemory | None = None) -> bytes:
    """The bytes of a ModelInferResponse, with raw contents.

    Raises:
        RequestError: an output cannot go out as it was asked for.
    """
    return response_message(response, form, regions).SerializeToString()


def encode_stream_response(
    response: TensorResponse, form: OutputForm = _PLAIN, regions: SharedMemory | None = None
) -> bytes:
    """The bytes of a ModelStreamInferResponse; each of our answers is the only, and so the final one, of its request.

    Raises:
        RequestError: an output cannot go out as it was asked for.
    """
    message = response_message(response, form, regions)
    message.parameters[FINAL_RESPONSE].bool_param = True
    return oip_pb2.ModelStreamInferResponse(infer_response=message).SerializeToString()


def encode_stream_error(text: str, request_id: str) -> bytes:
    """The bytes of a ModelStreamInferResponse that says what was wrong; the stream goes on."""
    message = oip_pb2.ModelStreamInferResponse(error_message=text or "unknown error")
    message.infer_response.id = request_id
    return message.SerializeToString()


def response_message(
    response: TensorResponse, form: OutputForm, regions: SharedMemory | None
) -> oip_pb2.ModelInferResponse:
    """The message of an answer; outputs that were placed in shared memory have an empty raw entry."""
    message = oip_pb2.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.request_id
    )
    for name, array in response.outputs.items():
        if name in form.classes_of:
            array = classified(name, array, form.classes_of[name], response.labels)
        tensor = message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        raw = to_raw(array)
        place = form.region_of.get(name)
        if place is not None:
            offered(regions).write(place, raw)
            tensor.parameters[REGION].string_param = place.region
            tensor.parameters[REGION_SIZE].int64_param = len(raw)
            if place.offset:
                tensor.parameters[REGION_OFFSET].int64_param = place.offset
            raw = b""
        message.raw_output_contents.append(raw)
    return message


def offered(regions: SharedMemory | None) -> SharedMemory:
    """The regions, if this server has any to offer.

    Raises:
        UnsupportedError: it has none.
    """
    if regions is None:
        raise UnsupportedError("shared memory is not offered here; send the tensor itself")
    return regions


def encode_request(request: TensorRequest) -> bytes:
    """The bytes of a ModelInferRequest, with raw contents; what a client sends."""
    message = oip_pb2.ModelInferRequest(model_name=request.model, model_version=request.version, id=request.request_id)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_input_contents.append(to_raw(array))
    for output in request.outputs:
        message.outputs.add(name=output)
    return message.SerializeToString()


def decode_response(data: bytes) -> TensorResponse:
    """The answer from the bytes of a ModelInferResponse with raw contents; what a client reads.

    Raises:
        RequestError: not such a message, or a tensor without raw contents.
    """
    message = parse(oip_pb2.ModelInferResponse, data)
    if len(message.outputs) != len(message.raw_output_contents):
        raise RequestError(
            f"expected {len(message.outputs)} raw_output_contents, got {len(message.raw_output_contents)}"
        )
    outputs = {
        tensor.name: from_raw(tensor.name, tensor.datatype, tensor.shape, raw)
        for tensor, raw in zip(message.outputs, message.raw_output_contents, strict=True)
    }
    return TensorResponse(message.model_name, message.model_version, message.id, outputs)


def _plain(parameters: Mapping[str, oip_pb2.InferParameter]) -> dict[str, object]:
    """The parameters as plain values; one without a value is absent."""
    plain: dict[str, object] = {}
    for key, value in parameters.items():
        which = value.WhichOneof("parameter_choice")
        if which is not None:
            plain[key] = getattr(value, which)
    return plain


def _sent(
    message: oip_pb2.ModelInferRequest, tensor: oip_pb2.ModelInferRequest.InferInputTensor, raws: Iterator[bytes]
) -> Array:
    """The tensor from the request's raw contents, if it has any, else from its own."""
    if not message.raw_input_contents:
        return _from_contents(tensor)
    if tensor.HasField("contents"):
        raise RequestError(f"input '{tensor.name}' has contents beside raw_input_contents; use one of them")
    raw = next(raws, None)
    if raw is None:
        raise RequestError(_raw_count(message, 0))
    return from_raw(tensor.name, tensor.datatype, tensor.shape, raw)


def _raw_count(message: oip_pb2.ModelInferRequest, in_regions: int) -> str:
    expected, got = len(message.inputs) - in_regions, len(message.raw_input_contents)
    return f"expected {expected} raw_input_contents, one per input that is sent, got {got}"


def _from_contents(tensor: oip_pb2.ModelInferRequest.InferInputTensor) -> Array:
    dtype_of(tensor.name, tensor.datatype)
    field = _CONTENTS_OF.get(tensor.datatype)
    if field is None:
        raise InvalidTensorError(f"input '{tensor.name}': {tensor.datatype} must be sent in raw_input_contents")
    for other in tensor.contents.DESCRIPTOR.fields:
        if other.name != field and len(getattr(tensor.contents, other.name)):
            raise InvalidTensorError(f"input '{tensor.name}': expected {field} for {tensor.datatype}, got {other.name}")
    elements: Sequence[object] = getattr(tensor.contents, field)
    return from_elements(tensor.name, tensor.datatype, tensor.shape, elements)
