"""Inference requests over HTTP/1.1, without a parser for those whose JSON came before, but for ids and numbers.

Rules: what is remembered is where things stand in a body whose JSON is the same, octet by octet; the whole decoder made
it, and says what is wrong with anything that looks unusual. An id is cut out only where it stands first, as libraries
write it, of letters that mean themselves in JSON; data only where all of it is numbers, which are read for every
request. Nothing of the tensors is remembered: the same bytes twice are run twice.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

import numpy as np

from holdfast.errors import HoldfastError
from holdfast.inference.tensors import Array
from holdfast.serving import oip_json
from holdfast.serving.datatypes import DTYPE_OF, datatype_of, from_elements
from holdfast.serving.native.codec import FAST_DATATYPES, InferCodec
from holdfast.serving.native.http_answers import binary_parts, json_parts
from holdfast.serving.native.layouts import AnswerParts, InputKind, Layout
from holdfast.serving.parameters import InferCall

MAX_LAYOUTS = 512  # remembered: models x shapes x wanted outputs x lengths of ids in use at once
MAX_JSON_BYTES = 1_024  # of a request that is remembered, without its numbers

_ID_STARTS = ((b'{"id":"', 7), (b'{"id": "', 8))
# In valid JSON without escapes this is the value of a key; the key itself is the same in every match.
_DATA = re.compile(rb'"data": ?(\[[-+0-9.eE, \[\]\r\n\t]*\])')
_DATATYPES = {np.dtype(DTYPE_OF[datatype]): datatype for datatype in FAST_DATATYPES}

_Key = tuple[str, str, int, int, int, bytes]  # model, version, octets of body and id, where the id begins, the JSON
_ANY_SIZE = -1  # of a body whose tensors are JSON


class HttpCodec:
    """Layouts of request bodies, and what stands around their answers. On one thread."""

    def __init__(self, codec: InferCodec) -> None:
        """codec: of gRPC, whose requests may share a run with ours."""
        self._kind_of = codec.kind_of
        self._layouts: dict[_Key, Layout | None] = {}  # None: only the whole decoder reads such

    def find(self, data: bytes, size: int, asked: HttpCalls) -> tuple[Layout, str] | None:
        """The layout of a body with raw tensors, and its id; None if the whole decoder must look at it."""
        split = asked.json_bytes
        cut = _id_in(data, split)
        if cut is None:
            return None
        start, end, text = cut
        key = (asked.model, asked.version, size, end - start, start, data[end:split])
        try:
            layout = self._layouts[key]
        except KeyError:
            layout = self._learn(data, asked, text, key)
        return None if layout is None else (layout, text)

    def read(self, data: bytes, asked: HttpCalls) -> tuple[Layout, str, bytes] | None:
        """The layout of a body that is all JSON, its id, and its tensors as raw contents; None as above."""
        pieces = _DATA.split(data)
        cut = _id_in(pieces[0], len(pieces[0])) if len(pieces) > 1 else None
        if cut is None:
            return None
        start, end, text = cut
        rest = b"\0".join((pieces[0][end:], *pieces[2::2]))  # a zero octet is in no JSON
        key = (asked.model, asked.version, _ANY_SIZE, end - start, start, rest)
        try:
            layout = self._layouts[key]
        except KeyError:
            layout = self._learn(data, asked, text, key)
        if layout is None:
            return None
        try:
            raws = [
                from_elements(each.name, _DATATYPES[each.dtype], shape, _flat(each.name, numbers)).tobytes()
                for each, shape, numbers in zip(layout.kind.inputs, layout.shapes, pieces[1::2], strict=True)
            ]
        except (HoldfastError, ValueError, RecursionError):
            return None
        return layout, text, raws[0] if len(raws) == 1 else b"".join(raws)

    def answer_parts(self, model: str, version: str, outputs: Mapping[str, Array], layout: Layout) -> AnswerParts:
        """What stands around an answer with these outputs to a request of this layout."""
        make = json_parts if layout.wants_json else binary_parts
        return make(model, version, outputs, layout.id_end - layout.id_start)

    def _learn(self, data: bytes, asked: HttpCalls, text: str, key: _Key) -> Layout | None:
        """Note the layout of a body that looks plain; None if it is not."""
        _, _, size, id_bytes, start, rest = key
        if len(rest) + id_bytes > MAX_JSON_BYTES:
            return None
        is_json, layout = size == _ANY_SIZE, None
        if b'"id"' not in rest and b"\\" not in rest:  # else its id may be another one, and its data
            try:
                call = oip_json.decode_infer(data, asked.json_bytes or None, asked.model, asked.version)
            except HoldfastError:  # the whole decoder says why
                if is_json:
                    return None  # the next numbers may be right
            else:
                is_read = not is_json or len(call.request.inputs) == rest.count(b"\0") == data.count(b'"data"')
                if is_read and call.request.request_id == text:
                    octets = None if is_json else size - asked.json_bytes
                    layout = self._layout(call, octets, asked.json_bytes, (start, start + id_bytes))
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = layout
        return layout

    def _layout(self, call: InferCall, octets: int | None, split: int, id_at: tuple[int, int]) -> Layout | None:
        """Where the contents stand in a body that was decoded; None if it is not plain. octets: of raw tensors."""
        request, form = call.request, call.form
        if call.priority or call.timeout_s is not None or form.classes_of or form.region_of or not request.inputs:
            return None
        are_binary = {form.is_binary(name) for name in request.outputs} or {form.default_binary}
        arrays = list(request.inputs.values())
        if len(are_binary) > 1 or not all(array.nbytes for array in arrays):
            return None
        if octets is not None and sum(array.nbytes for array in arrays) != octets:
            return None  # some did not come as binary data
        raws, inputs, at = [], [], split
        for name, array in request.inputs.items():
            if datatype_of(array) not in FAST_DATATYPES:
                return None
            row_shape = array.shape[1:]
            inputs.append(InputKind(name, array.dtype, row_shape, math.prod(row_shape) * array.dtype.itemsize))
            raws.append((at, at + array.nbytes))
            at += array.nbytes
        shapes = tuple(array.shape for array in arrays)
        rows = {shape[0] if shape else 0 for shape in shapes}
        layout = Layout(
            self._kind_of(request.model, request.version, tuple(inputs), request.outputs),
            shapes, rows.pop() if len(rows) == 1 else 0, b"", id_at[0], id_at[1], b"", tuple(raws), (),
        )  # fmt: skip
        layout.wants_json = not are_binary.pop()
        return layout


class HttpCalls:
    """What the path and the head of requests say: of whom they ask, and how long the JSON before raw tensors is.

    json_bytes: 0 if their tensors are JSON too. Such a request is read before it comes to the lane, which gets its
    contents; one at a time.
    """

    __slots__ = ("_read", "codec", "json_bytes", "model", "version")

    def __init__(self, codec: HttpCodec, target: tuple[str, str], json_bytes: int) -> None:
        self.codec = codec
        self.model, self.version = target
        self.json_bytes = json_bytes
        self._read: tuple[Layout, str] | None = None

    def contents(self, body: bytes) -> bytes | None:
        """What the lane gets of a body; None if the whole decoder must look at it."""
        if self.json_bytes:
            return body
        found = self.codec.read(body, self)
        if found is None:
            return None
        layout, request_id, contents = found
        self._read = layout, request_id
        return contents

    def match(self, data: bytes, size: int) -> tuple[Layout, str] | None:
        """The layout of what `contents` gave, and its id; None if the whole decoder must look at it."""
        return self.codec.find(data, size, self) if self.json_bytes else self._read


def _flat(name: str, numbers: bytes) -> list[object]:
    """Row-major elements of a list in JSON, or of nested ones."""
    data: list[object] = json.loads(numbers.decode())
    return data if numbers.find(b"[", 1) < 0 else oip_json.flat(name, data)


def _id_in(data: bytes, end: int) -> tuple[int, int, str] | None:
    """Where the id stands in JSON that ends there, and the id; no octets if it does not come first.

    None: it has letters that may mean others.
    """
    for begin, start in _ID_STARTS:
        if data.startswith(begin):
            id_end = data.find(b'"', start, end)
            try:
                text = data[start:id_end].decode("ascii")
            except UnicodeDecodeError:
                return None
            return (start, id_end, text) if id_end >= 0 and text.isprintable() and "\\" not in text else None
    return 0, 0, ""
