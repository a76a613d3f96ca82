"""ModelInfer messages whose tensors all lie in shared memory, without a parser for those that were read before.

Rules: such a message says only where its tensors lie, and clients send the same few over and over; what stands around
the id is remembered, octet by octet, with what the whole decoder made of it. Anything unusual goes to the whole
decoder, which says what is wrong. Nothing of the regions is remembered: they are looked up and read for every request.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import numpy as np
from google.protobuf.message import DecodeError

from holdfast.errors import HoldfastError
from holdfast.inference.tensors import Array
from holdfast.serving import oip, oip_pb2
from holdfast.serving.datatypes import DTYPE_OF, checked_shape
from holdfast.serving.grpc_wire import PREFIX_BYTES
from holdfast.serving.native.codec import FAST_DATATYPES
from holdfast.serving.native.layouts import Fit, InputKind, RequestKind
from holdfast.serving.native.places import places_of
from holdfast.serving.parameters import REGION, OutputForm, RegionSlice
from holdfast.serving.shared_memory import SharedMemory

MAX_KNOWN = 512  # messages without their ids: models x slots of a client's region
MAX_BYTES = 2_048  # of such a message

_REGION = REGION.encode()
_NAME, _VERSION, _ID = 0x0A, 0x12, 0x1A  # tags of ModelInferRequest: field number << 3 | wire type 2


@dataclass(slots=True, eq=False)
class SharedCall:
    """What such a message asks for, but for its id: shape and place of each input. `fit` as in `Layout`."""

    kind: RequestKind
    shapes: tuple[tuple[int, ...], ...]
    places: tuple[RegionSlice, ...]
    form: OutputForm
    fit: Fit | None = None

    def read(self, regions: SharedMemory) -> dict[str, Array]:
        """The tensors as they are now: copies, so that nobody changes them during a run.

        Raises:
            HoldfastError: a region is gone, or has shrunk.
        """
        return {
            each.name: np.frombuffer(regions.read(place), each.dtype).reshape(shape)
            for each, shape, place in zip(self.kind.inputs, self.shapes, self.places, strict=True)
        }


class SharedCalls:
    """Finds messages again. On one thread."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], SharedCall] = {}

    def find(self, body: bytes) -> tuple[SharedCall, str] | None:
        """What a framed message asks for, and its id; None if the whole decoder must look at it."""
        size = len(body)
        if size > MAX_BYTES or _REGION not in body:
            return None
        try:
            if body[0] or int.from_bytes(body[1:PREFIX_BYTES], "big") != size - PREFIX_BYTES or body[5] != _NAME:
                return None
            at = id_end = 7 + body[6]
            if body[at] == _VERSION:
                at = id_end = at + 2 + body[at + 1]
            if body[at] == _ID:
                id_end = at + 2 + body[at + 1]
                if body[at + 1] > 0x7F:
                    return None
            key = (body[PREFIX_BYTES:at], body[id_end:])
            call = self._known.get(key) or self._learn(body, (at, id_end), key)
            return None if call is None else (call, body[at + 2 : id_end].decode())
        except (IndexError, ValueError):  # UnicodeDecodeError is one
            return None

    def _learn(self, body: bytes, id_at: tuple[int, int], key: tuple[bytes, bytes]) -> SharedCall | None:
        places = places_of(body + b"\0")  # contents would follow here
        if places is None or places.end != len(body) or (places.id_end, places.declared) != (id_at[1], id_at[1]):
            return None
        call = None
        with contextlib.suppress(DecodeError, HoldfastError):  # the whole decoder says why
            call = _read(oip_pb2.ModelInferRequest.FromString(body[PREFIX_BYTES:]))
        if call is not None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            self._known[key] = call
        return call


def _read(message: oip_pb2.ModelInferRequest) -> SharedCall | None:
    kinds, shapes, slices = [], [], []
    for tensor in message.inputs:
        place = oip.region_of(tensor)
        if place is None or tensor.datatype not in FAST_DATATYPES or tensor.HasField("contents"):
            return None
        shape = checked_shape(tensor.name, tensor.shape)
        dtype = np.dtype(DTYPE_OF[tensor.datatype])
        if math.prod(shape) * dtype.itemsize != place.size_bytes:
            return None
        kinds.append(InputKind(tensor.name, dtype, shape[1:], math.prod(shape[1:]) * dtype.itemsize))
        shapes.append(shape)
        slices.append(place)
    if not kinds or len({each.name for each in kinds}) != len(kinds):
        return None
    outputs = tuple(output.name for output in message.outputs)
    kind = RequestKind(message.model_name, message.model_version, tuple(kinds), outputs)
    return SharedCall(kind, tuple(shapes), tuple(slices), oip.form_of(message))
