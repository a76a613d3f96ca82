"""ModelInfer messages without a parser, where one is not needed: the head of a message that was read before.

Rules: a request is taken apart here only if it is written as every protobuf library writes it, with raw contents of
plain numbers and no parameters; anything else goes to the whole decoder, and so does whatever looks wrong, so that
there is one place that says what is wrong. Bytes in and out are the same with and without this; with `memoise` off it
is not asked. What is remembered is how inputs are declared, never their values: the same bytes twice are run twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from holdfast.errors import HoldfastError
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse
from holdfast.serving import oip_pb2
from holdfast.serving.datatypes import DTYPE_OF, checked_shape, datatype_of
from holdfast.serving.parameters import InferCall, OutputForm

MAX_PLANS = 512  # declarations remembered: models x shapes x wanted outputs in use at once
MAX_DECLARED_BYTES = 1_024  # of a declaration that is remembered
MAX_HEAD_BYTES = 4_096  # of a large message that are looked at: name, id and declarations
FAST_DATATYPES = frozenset(DTYPE_OF) - {"BYTES", "BOOL"}  # BYTES has lengths inside, BOOL bytes that may be wrong

# Tags: field number << 3 | wire type 2 (ModelInferRequest 1, 2, 3, 5, 6, 7; ModelInferResponse 1, 2, 3, 5, 6).
_NAME, _VERSION, _ID, _INPUT, _OUTPUT, _RAW = 0x0A, 0x12, 0x1A, 0x2A, 0x32, 0x3A

_PLAIN = OutputForm()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the declarations of a request say: (name, dtype, shape, elements, octets) of each input, and the outputs."""

    inputs: tuple[tuple[str, np.dtype[np.generic], tuple[int, ...], int, int], ...]
    outputs: tuple[str, ...]


class InferCodec:
    """Decodes requests and encodes answers of ModelInfer. On one thread."""

    def __init__(self) -> None:
        self._plans: dict[bytes, _Plan | None] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._declared: dict[tuple[str, np.dtype[np.generic], tuple[int, ...]], bytes] = {}

    def decode(self, data: bytes | memoryview) -> InferCall | None:
        """The request of a ModelInferRequest; None if the whole decoder must look at it."""
        head = data if type(data) is bytes else bytes(data[:MAX_HEAD_BYTES])
        try:
            return self._decode(head, data)
        except (IndexError, UnicodeDecodeError, ValueError):
            return None

    def encode(self, form: OutputForm, response: TensorResponse) -> bytes | None:
        """The bytes of a ModelInferResponse with raw contents; None if the whole encoder must make them."""
        if form.classes_of or form.region_of:
            return None
        head = self._heads.get((response.model, response.version))
        if head is None:
            head = self._learn_head(response.model, response.version)
        parts = [head]
        if response.request_id:
            request_id = response.request_id.encode()
            parts.append(b"\x1a" + _varint(len(request_id)) + request_id)
        raws: list[bytes] = []
        for name, array in response.outputs.items():
            declared = self._declared.get((name, array.dtype, array.shape)) or self._learn_output(name, array)
            if not declared:
                return None
            raw = array.tobytes()
            parts.append(declared)
            raws.append(b"\x32" + _varint(len(raw)))
            raws.append(raw)
        return b"".join(parts + raws)

    def _decode(self, head: bytes, data: bytes | memoryview) -> InferCall | None:
        if head[0] != _NAME or head[1] > 0x7F:
            return None
        at = 2 + head[1]
        model = head[2:at].decode()
        version = request_id = ""
        if head[at] == _VERSION:
            start, at = at + 2, at + 2 + head[at + 1]
            if head[start - 1] > 0x7F:
                return None
            version = head[start:at].decode()
        if head[at] == _ID:
            start, at = at + 2, at + 2 + head[at + 1]
            if head[start - 1] > 0x7F:
                return None
            request_id = head[start:at].decode()
        start = at
        while (tag := head[at]) == _INPUT or tag == _OUTPUT:
            size = head[at + 1]
            if size > 0x7F:
                if head[at + 2] > 0x7F:
                    return None
                at += 3 + (size & 0x7F | head[at + 2] << 7)
            else:
                at += 2 + size
        declared = head[start:at]
        plan = self._plans.get(declared)
        if plan is None and declared not in self._plans:
            plan = self._learn(declared)
        if plan is None:
            return None
        inputs = _contents(plan, head, data, at)
        if inputs is None:
            return None
        return InferCall(TensorRequest(model, version, request_id, inputs, plan.outputs), _PLAIN)

    def _learn(self, declared: bytes) -> _Plan | None:
        plan = None
        if len(declared) <= MAX_DECLARED_BYTES:
            try:
                plan = _plan(oip_pb2.ModelInferRequest.FromString(declared))
            except (DecodeError, HoldfastError):
                plan = None  # the whole decoder says why
            if len(self._plans) >= MAX_PLANS:
                self._plans.clear()
            self._plans[declared] = plan
        return plan

    def _learn_head(self, model: str, version: str) -> bytes:
        head = oip_pb2.ModelInferResponse(model_name=model, model_version=version).SerializeToString()
        if len(self._heads) >= MAX_PLANS:
            self._heads.clear()
        self._heads[(model, version)] = head
        return head

    def _learn_output(self, name: str, array: Array) -> bytes:
        """An output's declaration; empty if its contents are not plain numbers in this machine's order."""
        if array.dtype == np.object_ or not array.dtype.isnative or array.nbytes == 0:
            return b""
        message = oip_pb2.ModelInferResponse()
        message.outputs.add(name=name, datatype=datatype_of(array), shape=array.shape)
        declared = message.SerializeToString()
        if len(declared) <= MAX_DECLARED_BYTES:
            if len(self._declared) >= MAX_PLANS:
                self._declared.clear()
            self._declared[(name, array.dtype, array.shape)] = declared
        return declared


def _plan(message: oip_pb2.ModelInferRequest) -> _Plan | None:
    inputs = []
    for tensor in message.inputs:
        if tensor.datatype not in FAST_DATATYPES or tensor.parameters or tensor.HasField("contents"):
            return None
        shape = checked_shape(tensor.name, tensor.shape)
        dtype = np.dtype(DTYPE_OF[tensor.datatype])
        count = int(np.prod(shape, dtype=np.int64))
        inputs.append((tensor.name, dtype, shape, count, count * dtype.itemsize))
    names = {name for name, *_ in inputs}
    if not inputs or len(names) != len(inputs) or any(output.parameters for output in message.outputs):
        return None
    return _Plan(tuple(inputs), tuple(output.name for output in message.outputs))


def _contents(plan: _Plan, head: bytes, data: bytes | memoryview, at: int) -> Mapping[str, Array] | None:
    """The inputs from the raw contents at `at`; None if they are not exactly what was declared."""
    inputs: dict[str, Array] = {}
    for name, dtype, shape, count, size in plan.inputs:
        if head is not data:
            head, data, at = bytes(data[at : at + 8]), data[at:], 0
        if head[at] != _RAW:
            return None
        at += 1
        length = shift = 0
        while (byte := head[at]) > 0x7F:
            length |= (byte & 0x7F) << shift
            shift += 7
            at += 1
        at += 1
        if length | byte << shift != size or at + size > len(data):
            return None
        inputs[name] = np.frombuffer(data, dtype, count, at).reshape(shape)
        at += size
    return inputs if at == len(data) else None


def _varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
