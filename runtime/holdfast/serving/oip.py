"""The Open Inference Protocol's gRPC messages, to and from tensors. Pure: bytes in, values out.

Rules: raw contents for all inputs or for none, one entry per input, in their order; lengths are checked before memory
is taken; the id is echoed; no requested outputs means all. Shared memory, classification and BF16 are refused by name.
Source: Open Inference Protocol v2 gRPC and its binary tensor rules; Triton's `grpc_service.proto` for the numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.errors import InvalidTensorError, RequestError, UnsupportedError
from holdfast.inference.pool import ServedModel
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse, TensorSpec
from holdfast.serving import oip_pb2
from holdfast.serving.datatypes import DATATYPE_OF, datatype_of, dtype_of, from_elements, from_raw, to_raw

PLATFORM = "onnxruntime_onnx"
SERVER_NAME = "holdfast"
# Only what is true of this server; a client may rely on each.
EXTENSIONS = ("binary_tensor_data",)
MAX_TENSORS = 1_024  # inputs or outputs of one request; models have a handful
RESERVED_PREFIX = "triton_"

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


def decode_request(data: bytes) -> TensorRequest:
    """A request from the bytes of a ModelInferRequest.

    Raises:
        RequestError: not such a message, or the rules of raw contents are broken.
        InvalidTensorError: a tensor is not what it says it is.
        UnsupportedError: it asks for shared memory, classification or a reserved parameter.
    """
    message = parse(oip_pb2.ModelInferRequest, data)
    require_supported(message.parameters, "the request")
    if len(message.inputs) > MAX_TENSORS or len(message.outputs) > MAX_TENSORS:
        raise RequestError(f"expected at most {MAX_TENSORS} inputs and outputs")
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise RequestError(f"expected {len(message.inputs)} raw_input_contents, one per input, got {len(raw)}")
    inputs: dict[str, Array] = {}
    for index, tensor in enumerate(message.inputs):
        require_supported(tensor.parameters, f"input '{tensor.name}'")
        if tensor.name in inputs:
            raise InvalidTensorError(f"input '{tensor.name}' is given twice")
        if raw and tensor.HasField("contents"):
            raise RequestError(f"input '{tensor.name}' has contents beside raw_input_contents; use one of them")
        if raw:
            inputs[tensor.name] = from_raw(tensor.name, tensor.datatype, tensor.shape, raw[index])
        else:
            inputs[tensor.name] = _from_contents(tensor)
    for output in message.outputs:
        require_supported(output.parameters, f"output '{output.name}'")
    names = tuple(output.name for output in message.outputs)
    return TensorRequest(message.model_name, message.model_version, message.id, inputs, names)


def encode_response(response: TensorResponse) -> bytes:
    """The bytes of a ModelInferResponse, with raw contents."""
    message = oip_pb2.ModelInferResponse(
        model_name=response.model, model_version=response.version, id=response.request_id
    )
    for name, array in response.outputs.items():
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        message.raw_output_contents.append(to_raw(array))
    return message.SerializeToString()


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


def server_metadata(version: str) -> bytes:
    """The bytes of a ServerMetadataResponse."""
    return oip_pb2.ServerMetadataResponse(name=SERVER_NAME, version=version, extensions=EXTENSIONS).SerializeToString()


def model_metadata(model: ServedModel) -> bytes:
    """The bytes of a ModelMetadataResponse."""
    message = oip_pb2.ModelMetadataResponse(name=model.name, versions=[model.version], platform=PLATFORM)
    for spec in model.session.inputs:
        message.inputs.add(name=spec.name, datatype=DATATYPE_OF[spec.dtype], shape=wire_shape(spec))
    for spec in model.session.outputs:
        message.outputs.add(name=spec.name, datatype=DATATYPE_OF[spec.dtype], shape=wire_shape(spec))
    return message.SerializeToString()


def wire_shape(spec: TensorSpec) -> list[int]:
    """A declared shape as the protocol writes it: -1 where any size goes."""
    return [-1 if size is None else size for size in spec.shape]


def require_supported(parameters: Iterable[str], where: str) -> None:
    """Refuse parameters that would change the answer and that this server does not follow.

    Raises:
        UnsupportedError: naming the parameter.
    """
    for key in parameters:
        if key.startswith("shared_memory_"):
            raise UnsupportedError(f"{where}: shared memory is not offered here; send the tensor itself")
        if key == "classification":
            raise UnsupportedError(f"{where}: the classification extension is not offered; ask for the whole output")
        if key.startswith(RESERVED_PREFIX):
            raise RequestError(f"{where}: parameter '{key[:80]}' is reserved")


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
