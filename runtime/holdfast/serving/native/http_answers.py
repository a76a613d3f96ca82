"""Answers of the lane over HTTP/1.1: what stands around their tensors, cut out of what the whole encoder writes.

Rules: the same octets as `oip_json.encode_response` and `HttpResponse.head` write; tests compare the two. Numbers are
written out for every answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from holdfast.inference.tensors import Array, TensorResponse
from holdfast.serving import oip_json
from holdfast.serving.datatypes import datatype_of
from holdfast.serving.native.layouts import AnswerParts, OutputsForm
from holdfast.serving.parameters import OutputForm
from holdfast.serving.routes import HttpResponse, infer_answer

HEAD_END = b"\r\n\r\n"

_BINARY = OutputForm(default_binary=True)
_NO_DATA, _KEY = ',"data":0', b',"data":'
_TAIL = b"}]}"  # after the data of the last output
_JSON_HEAD = HttpResponse(200, b"{}").head().rpartition(" ")[0].encode()  # and then the length
_encode = json.JSONEncoder(separators=(",", ":")).encode


def binary_parts(model: str, version: str, outputs: Mapping[str, Array], id_bytes: int) -> AnswerParts:
    """What stands around an answer with these outputs as raw tensors, and an id of this length.

    Returns: octets of the whole; head and JSON before the id, the JSON after it, and nothing before the other outputs'
        contents.
    """
    body = oip_json.encode_response(TensorResponse(model, version, "i" * id_bytes, outputs), _BINARY)
    assert body.header_length is not None, "outputs are there, and binary"
    head = infer_answer(body).head().encode("latin-1") + HEAD_END
    begin = _before_id(model, version, id_bytes)
    second = body.data[begin + id_bytes : body.header_length]
    return len(head) + len(body.data), (head + body.data[:begin], second, *[b""] * (len(outputs) - 1))


def json_parts(model: str, version: str, outputs: Mapping[str, Array], id_bytes: int) -> AnswerParts:
    """The same for outputs that go out as JSON: what stands before the id, and before the data of each output.

    Returns: 0 for the octets of the whole, which are known when the numbers are written.
    """
    entries = [
        {"name": name, "datatype": datatype_of(array), "shape": list(array.shape), "data": 0}
        for name, array in outputs.items()
    ]
    named = {"model_name": model, "model_version": version, **({"id": "i" * id_bytes} if id_bytes else {})}
    text = _encode({**named, "outputs": entries})
    begin = _before_id(model, version, id_bytes)
    pieces = text[begin + id_bytes :].encode().split(_NO_DATA.encode())
    return 0, (text[:begin].encode(), *(piece + _KEY for piece in pieces[:-1]))


def with_numbers(form: OutputsForm, parts: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Head and body of an answer whose tensors go out as JSON; `parts` as of `json_parts`, a tensor after each.

    Raises:
        InvalidTensorError: a tensor holds what JSON cannot carry.
    """
    written = [parts[0], parts[1]]
    for place, (name, dtype, _) in enumerate(form.outputs):
        written += (parts[2 + 2 * place], _numbers(name, np.frombuffer(parts[3 + 2 * place], dtype)))
    written.append(_TAIL)
    body = b"".join(written)
    return b"%b %d" % (_JSON_HEAD, len(body)), body


def whole_answer(response: TensorResponse, *, wants_json: bool) -> bytes:
    """Head and body of an answer of which nothing is known.

    Raises:
        InvalidTensorError: a tensor holds what JSON cannot carry.
    """
    answer = infer_answer(oip_json.encode_response(response, OutputForm(default_binary=not wants_json)))
    return answer.head().encode("latin-1") + HEAD_END + answer.body


def _numbers(name: str, array: Array) -> bytes:
    """A flat tensor as JSON."""
    if array.dtype.kind in "fiu":
        text = repr(array.tolist())  # as JSON writes numbers, but for blanks; "nan" and "inf" have an n
        if "n" not in text:
            return text.replace(" ", "").encode()
    return _encode(oip_json.elements(name, array)).encode()


def _before_id(model: str, version: str, id_bytes: int) -> int:
    """Octets of JSON before the id."""
    return len(_encode({"model_name": model, "model_version": version})) - 1 + (len(',"id":"') if id_bytes else 0)
