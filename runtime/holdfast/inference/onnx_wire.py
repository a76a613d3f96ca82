"""Just enough of the protobuf wire format to read and write ONNX files without the onnx package.

Reads: which external data files a model names. Writes: messages for `example_model`. The walk is bounded by the length
of the input and never recurses further than the fixed path it looks for. Source: protobuf.dev "Encoding"; field
numbers: onnx.proto (ModelProto.graph 7, GraphProto.initializer 5, TensorProto.external_data 13, data_location 14).
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_EXTERNAL_FILES = 1_024  # a model names one, or one per layer; more is a mistake

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _ENTRY_KEY, _ENTRY_VALUE = 7, 5, 13, 1, 2


def external_locations(model: bytes) -> tuple[str, ...]:
    """The external data files that a model's initializers name, each once, in order of appearance.

    Raises:
        ModelError: the bytes are not a protobuf message, or name too many files.
    """
    found: dict[str, None] = {}
    for graph in _messages(memoryview(model), _GRAPH):
        for tensor in _messages(graph, _INITIALIZER):
            for entry in _messages(tensor, _EXTERNAL_DATA):
                pair = {number: bytes(value) for number, value in _fields(entry)}
                if pair.get(_ENTRY_KEY) == b"location":
                    found[pair.get(_ENTRY_VALUE, b"").decode("utf-8", "replace")] = None
        if len(found) > MAX_EXTERNAL_FILES:
            raise ModelError(f"the model names more than {MAX_EXTERNAL_FILES} external data files")
    return tuple(found)


def field_bytes(number: int, value: bytes | str) -> bytes:
    """One length-delimited field: a string, bytes, or a sub-message already encoded."""
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | BYTES) + _varint(len(data)) + data


def field_varint(number: int, value: int) -> bytes:
    """One integer field; negative numbers as protobuf's int64 (ten bytes)."""
    return _varint(number << 3 | VARINT) + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)


def field_float(number: int, value: bytes) -> bytes:
    """One float field from its four little-endian bytes."""
    return _varint(number << 3 | FIXED32) + value


def _messages(data: memoryview, wanted: int) -> Iterator[memoryview]:
    return (value for number, value in _fields(data) if number == wanted)


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The length-delimited fields of one message; the others are stepped over."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        kind = tag & 7
        if kind == VARINT:
            _, at = _read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            at += 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            size, at = _read_varint(data, at)
            if at + size <= end:
                yield tag >> 3, data[at : at + size]
            at += size
        else:
            raise ModelError(f"not an ONNX file: wire type {kind} at byte {at} is not protobuf as ONNX uses it")
        if at > end:
            raise ModelError(f"not a whole ONNX file: a field runs {at - end} bytes past its end; it may be truncated")


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ModelError("not a whole ONNX file: it ends inside a number; it may be truncated")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ModelError(f"not an ONNX file: a number at byte {at} is longer than ten bytes")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
