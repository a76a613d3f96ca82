"""Inference requests over HTTP with binary tensors, without a parser for those whose JSON came before.

Rules: what is remembered is where things stand in a body whose JSON is the same, octet by octet, but for its id; the
whole decoder made it, and says what is wrong with anything that looks unusual. An id is cut out only where it stands
first, as libraries write it, of letters that mean themselves in JSON. Answers are cut out of one that the whole encoder
made. Nothing of the tensors is remembered: the same bytes twice are run twice.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping

from holdfast.errors import HoldfastError
from holdfast.inference.tensors import Array, TensorResponse
from holdfast.serving import oip_json
from holdfast.serving.datatypes import datatype_of
from holdfast.serving.native.codec import FAST_DATATYPES, AnswerParts, InferCodec, InputKind, Layout
from holdfast.serving.parameters import InferCall, OutputForm
from holdfast.serving.routes import infer_answer

MAX_LAYOUTS = 512  # remembered: models x shapes x wanted outputs x lengths of ids in use at once
MAX_JSON_BYTES = 1_024  # of a request that is remembered

_BINARY = OutputForm(default_binary=True)
_ID_STARTS = ((b'{"id":"', 7), (b'{"id": "', 8))

_Key = tuple[str, str, int, int, int, bytes]  # model, version, octets of body and id, where the id begins, the JSON


class HttpCodec:
    """Layouts of request bodies, and what stands around their answers. On one thread."""

    def __init__(self, codec: InferCodec) -> None:
        """codec: of gRPC, whose requests may share a run with ours."""
        self._kind_of = codec.kind_of
        self._layouts: dict[_Key, Layout | None] = {}  # None: only the whole decoder reads such

    def find(self, data: bytes, size: int, asked: BinaryCalls) -> tuple[Layout, str] | None:
        """The layout of a body, and its id; None if the whole decoder must look at it."""
        split, start, end, text = asked.json_bytes, 0, 0, ""
        for begin, at in _ID_STARTS:
            if data.startswith(begin):
                start, end = at, data.find(b'"', at, split)
                if end < 0:
                    return None
                try:
                    text = data[start:end].decode("ascii")
                except UnicodeDecodeError:
                    return None
                if not text.isprintable() or "\\" in text:
                    return None
                break
        key = (asked.model, asked.version, size, end - start, start, data[end:split])
        try:
            layout = self._layouts[key]
        except KeyError:
            layout = self._learn(data, asked, text, key)
        return None if layout is None else (layout, text)

    def answer_parts(self, model: str, version: str, outputs: Mapping[str, Array], id_bytes: int) -> AnswerParts:
        """What stands around an answer with these outputs and an id of this length.

        Returns: octets of the whole; head and JSON before the id, the JSON after it, and nothing before the other
            outputs' contents.
        """
        named: dict[str, str] = {"model_name": model, "model_version": version}
        begin = len(json.dumps(named, separators=(",", ":"))) - 1 + (len(',"id":"') if id_bytes else 0)
        body = oip_json.encode_response(TensorResponse(model, version, "i" * id_bytes, outputs), _BINARY)
        assert body.header_length is not None, "outputs are there, and binary"
        answer = infer_answer(body)
        head = f"{answer.head()}\r\n\r\n".encode("latin-1")
        first, second = body.data[:begin], body.data[begin + id_bytes : body.header_length]
        return len(head) + len(body.data), (head + first, second, *(b"" for _ in range(len(outputs) - 1)))

    def _learn(self, data: bytes, asked: BinaryCalls, text: str, key: _Key) -> Layout | None:
        """Note the layout of a body that looks plain; None if it is not."""
        *_, id_bytes, start, rest = key
        if len(rest) + id_bytes > MAX_JSON_BYTES:
            return None
        layout = None
        if b'"id"' not in rest and b"\\" not in rest:  # else its id may be another one
            with contextlib.suppress(HoldfastError):  # the whole decoder says why
                call = oip_json.decode_infer(data, asked.json_bytes, asked.model, asked.version)
                if call.request.request_id == text:
                    layout = self._layout(call, len(data), asked.json_bytes, (start, start + id_bytes))
        if len(self._layouts) >= MAX_LAYOUTS:
            self._layouts.clear()
        self._layouts[key] = layout
        return layout

    def _layout(self, call: InferCall, size: int, split: int, id_at: tuple[int, int]) -> Layout | None:
        """Where the contents stand in a body that was decoded; None if it is not plain."""
        request, form = call.request, call.form
        if call.priority or call.timeout_s is not None or form.classes_of or form.region_of or not request.inputs:
            return None
        if not (form.default_binary if not request.outputs else all(map(form.is_binary, request.outputs))):
            return None
        arrays = list(request.inputs.values())
        if sum(array.nbytes for array in arrays) != size - split or not all(array.nbytes for array in arrays):
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
        kind = self._kind_of(request.model, request.version, tuple(inputs), request.outputs)
        return Layout(kind, shapes, rows.pop() if len(rows) == 1 else 0, b"", id_at[0], id_at[1], b"", tuple(raws), ())


class BinaryCalls:
    """What the path and the head of requests say, whose bodies are JSON and then raw tensors."""

    __slots__ = ("codec", "json_bytes", "model", "version")

    def __init__(self, codec: HttpCodec, target: tuple[str, str], json_bytes: int) -> None:
        self.codec = codec
        self.model, self.version = target
        self.json_bytes = json_bytes

    def match(self, data: bytes, size: int) -> tuple[Layout, str] | None:
        """The layout of a body, and its id; None if the whole decoder must look at it."""
        return self.codec.find(data, size, self)
