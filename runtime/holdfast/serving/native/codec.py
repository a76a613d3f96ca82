"""ModelInfer messages without a parser, where one is not needed: the layout of a message that was read before.

Rules: a request is taken apart here only if it is written as every protobuf library writes it, with raw contents of
plain numbers and no parameters; anything else goes to the whole decoder, and so does whatever looks wrong, so that
there is one place that says what is wrong. Bytes in and out are the same with and without this; with `memoise` off it
is not asked. What is remembered is where things stand, never ids or values: the same bytes twice are run twice.

Why layouts: clients send the same model, shape and lengths over and over. Comparing what must be equal and cutting out
the id and the tensors costs 0.6 us; walking through the fields costs 3, and parsing them 10.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError

from holdfast.errors import HoldfastError
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse
from holdfast.serving import oip_pb2
from holdfast.serving.datatypes import DTYPE_OF, checked_shape, datatype_of
from holdfast.serving.grpc_wire import PREFIX_BYTES, framed_prefix
from holdfast.serving.native.layouts import AnswerParts, InputKind, Layout, RequestKind, arrays_in
from holdfast.serving.native.places import Places, places_of, varint
from holdfast.serving.parameters import InferCall, OutputForm

MAX_LAYOUTS: Final = 512  # remembered: models x shapes x wanted outputs x lengths of ids in use at once
MAX_ALIKE: Final = 8  # layouts of the same length that begin alike
MAX_DECLARED_BYTES: Final = 1_024  # of a declaration that is remembered
VIEW_BYTES: Final = 8_192  # of an array: below that a copy costs less than a view
MAX_HEAD_BYTES: Final = 4_096  # of a large message that are looked at: name, id and declarations
FAST_DATATYPES: Final = frozenset(DTYPE_OF) - {"BYTES", "BOOL"}  # which have lengths inside, or may be wrong

_PLAIN: Final = OutputForm()


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the declarations of a request say: (name, dtype, shape, octets) of each input, and the outputs."""

    inputs: tuple[tuple[str, np.dtype[np.generic], tuple[int, ...], int], ...]
    outputs: tuple[str, ...]


class InferCodec:
    """Decodes requests and encodes answers of ModelInfer. On one thread."""

    def __init__(self) -> None:
        self._layouts: dict[int, dict[bytes, list[Layout]]] = {}  # by size, then by how they begin
        self._count = 0
        self._strange: set[bytes] = set()  # declarations that only the whole decoder reads
        self._kinds: dict[object, RequestKind] = {}
        self._heads: dict[tuple[str, str], bytes] = {}
        self._declared: dict[tuple[str, np.dtype[np.generic], tuple[int, ...]], bytes] = {}

    def match(self, data: bytes, size: int) -> tuple[Layout, str] | None:
        """The layout of a framed message, and its id; None if the whole decoder must look at it.

        Args:
            data: the whole message with its prefix, or the first `MAX_HEAD_BYTES` of it.
            size: octets of the whole.
        """
        if size < 10:
            return None
        try:
            begin = data[: data[6] + 9]  # prefix, model name, and the tag and length of what follows
            alike = self._layouts.get(size)
            for layout in alike.get(begin, ()) if alike is not None else ():
                id_end = layout.id_end
                if (
                    (not layout.start or data.startswith(layout.start))
                    and data.startswith(layout.middle, id_end)
                    and (not layout.between or _holds(layout, data))
                ):
                    return layout, data[layout.id_start : id_end].decode()
            learned = self._learn(size, begin, data)
            return None if learned is None else (learned, data[learned.id_start : learned.id_end].decode())
        except (IndexError, UnicodeDecodeError, ValueError):
            return None

    def first_raw(self, head: bytes, size: int) -> int:
        """Where the contents of the first input begin in a framed message, seen from its begin; 0 for unusual ones."""
        found = self.match(head[:MAX_HEAD_BYTES], size)
        return 0 if found is None else found[0].raws[0][0]

    def decode(self, data: bytes | bytearray | memoryview) -> InferCall | None:
        """The request of a framed ModelInferRequest; None if the whole decoder must look at it."""
        found = self.look(data)
        if found is None:
            return None
        layout, request_id = found
        kind, inputs = layout.kind, arrays_in(data, layout)
        return InferCall(TensorRequest(kind.model, kind.version, request_id, inputs, kind.outputs), _PLAIN)

    def look(self, data: bytes | bytearray | memoryview) -> tuple[Layout, str] | None:
        """`match` for a whole message, large ones too."""
        if type(data) is bytes:
            return self.match(data, len(data))
        found = self.match(bytes(data[:MAX_HEAD_BYTES]), len(data))
        if found is None or any(data[at : at + len(piece)] != piece for at, piece in found[0].between):
            return None
        return found

    def encode(self, form: OutputForm, response: TensorResponse) -> bytes | None:
        """The bytes of a ModelInferResponse with raw contents; None if the whole encoder must make them."""
        if form.classes_of or form.region_of:
            return None
        parts = [self._head(response.model, response.version)]
        if response.request_id:
            request_id = response.request_id.encode()
            parts.append(b"\x1a" + varint(len(request_id)) + request_id)
        raws: list[bytes | memoryview] = []
        for name, array in response.outputs.items():
            declared = self._declaration(name, array)
            if not declared:
                return None
            parts.append(declared)
            raws.append(b"\x32" + varint(array.nbytes))
            raws.append(array.tobytes() if array.nbytes < VIEW_BYTES else array.reshape(-1).view(np.uint8).data)
        return b"".join((*parts, *raws))

    def answer_parts(self, model: str, version: str, outputs: Mapping[str, Array], id_bytes: int) -> AnswerParts | None:
        """What stands around an answer with these outputs and an id of this length, prefix included.

        Returns: octets of the whole framed message; the part before the id, and the one before each output's contents.
            None if the whole encoder must make it.
        """
        declared = [self._declaration(name, array) for name, array in outputs.items()]
        if not declared or not all(declared):
            return None
        sizes = [array.nbytes for array in outputs.values()]
        tags = [b"\x32" + varint(size) for size in sizes]
        head = self._head(model, version)
        id_tag = b"\x1a" + varint(id_bytes) if id_bytes else b""
        size = len(head) + len(id_tag) + id_bytes + sum(map(len, declared)) + sum(map(len, tags)) + sum(sizes)
        first = b"".join((framed_prefix(size), head, id_tag))
        return PREFIX_BYTES + size, (first, b"".join(declared) + tags[0], *tags[1:])

    def _head(self, model: str, version: str) -> bytes:
        return self._heads.get((model, version)) or self._learn_head(model, version)

    def _declaration(self, name: str, array: Array) -> bytes:
        return self._declared.get((name, array.dtype, array.shape)) or self._learn_output(name, array)

    def _learn(self, size: int, begin: bytes, head: bytes) -> Layout | None:
        """Note the layout of a message that looks plain; None if it is not."""
        places = places_of(head)
        if places is None or places.end - places.declared > MAX_DECLARED_BYTES:
            return None
        plan = self._plan(head[places.declared : places.end])
        if plan is None:
            return None
        if self._count >= MAX_LAYOUTS:
            self._layouts.clear()
            self._kinds.clear()
            self._count = 0
        layout = self._layout(size, head, places, plan)
        alike = self._layouts.setdefault(size, {}).setdefault(begin, [])
        if layout is None or len(alike) >= MAX_ALIKE:
            return layout
        alike.append(layout)
        self._count += 1
        return layout

    def _plan(self, declared: bytes) -> _Plan | None:
        plan = None
        if declared not in self._strange:
            with contextlib.suppress(DecodeError, HoldfastError):  # the whole decoder says why
                plan = _plan(oip_pb2.ModelInferRequest.FromString(declared))
            if plan is None:
                if len(self._strange) >= MAX_LAYOUTS:
                    self._strange.clear()
                self._strange.add(declared)
        return plan

    def _layout(self, size: int, head: bytes, places: Places, plan: _Plan) -> Layout | None:
        """Where the contents must stand; None if they do not, as far as `head` shows it."""
        raws: list[tuple[int, int]] = []
        between: list[tuple[int, bytes]] = []
        at = places.end
        for _, _, _, octets in plan.inputs:
            tag = b"\x3a" + varint(octets)
            between.append((at, tag))
            at += len(tag) + octets
            raws.append((at - octets, at))
        middle = head[places.id_end : places.end] + between[0][1]
        framed = int.from_bytes(head[1:PREFIX_BYTES], "big") == size - PREFIX_BYTES
        if not framed or at != size or not head.startswith(middle, places.id_end):
            return None
        if any(head[at : at + len(tag)] != tag for at, tag in between[1:] if at + len(tag) <= len(head)):
            return None
        shapes = tuple(shape for _, _, shape, _ in plan.inputs)
        rows = {shape[0] if shape else 0 for shape in shapes}
        return Layout(
            self._kind(places, plan),
            shapes,
            rows.pop() if len(rows) == 1 else 0,
            head[: places.id_start] if places.id_start > head[6] + 9 else b"",
            places.id_start,
            places.id_end,
            middle,
            tuple(raws),
            tuple(between[1:]),
        )

    def _kind(self, places: Places, plan: _Plan) -> RequestKind:
        inputs = []
        for name, dtype, shape, _ in plan.inputs:
            row_shape = shape[1:]
            inputs.append(InputKind(name, dtype, row_shape, math.prod(row_shape) * dtype.itemsize))
        return self.kind_of(places.model, places.version, tuple(inputs), plan.outputs)

    def kind_of(self, model: str, version: str, inputs: tuple[InputKind, ...], outputs: tuple[str, ...]) -> RequestKind:
        """What all such requests have in common, whichever protocol they came by."""
        kind = RequestKind(model, version, inputs, outputs)
        kind.is_plain = all(each.row_bytes for each in inputs)
        if len(self._kinds) >= MAX_LAYOUTS:
            self._kinds.clear()
        return self._kinds.setdefault((model, version, inputs, outputs), kind)

    def _learn_head(self, model: str, version: str) -> bytes:
        head = oip_pb2.ModelInferResponse(model_name=model, model_version=version).SerializeToString()
        if len(self._heads) >= MAX_LAYOUTS:
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
            if len(self._declared) >= MAX_LAYOUTS:
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
        inputs.append((tensor.name, dtype, shape, math.prod(shape) * dtype.itemsize))
    names = {name for name, *_ in inputs}
    if not inputs or len(names) != len(inputs) or any(output.parameters for output in message.outputs):
        return None
    return _Plan(tuple(inputs), tuple(output.name for output in message.outputs))


def _holds(layout: Layout, data: bytes) -> bool:
    """Whether what must stand between contents does, as far as `data` goes."""
    return all(data.startswith(piece, at) for at, piece in layout.between if at + len(piece) <= len(data))
