"""Just enough of the protobuf wire format to read and write ONNX files without the onnx package.

Reads: the fields of a message (`Message`, for `onnx_graph`), and which external data files a model names. Writes:
messages for `example_model`. A walk is bounded by the length of its input. What protobuf's own parsers may read in
another way than this one (field numbers past 32 bits, groups) is refused, so that nobody can show us one model and
ONNX Runtime another. Source: protobuf.dev "Encoding"; field numbers: onnx.proto (ModelProto.graph 7,
GraphProto.initializer 5, TensorProto.external_data 13, data_location 14).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from holdfast.errors import ModelError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_EXTERNAL_FILES = 1_024  # a model names one, or one per layer; more is a mistake

_MAX_TAG = 0xFFFF_FFFF  # protobuf's parsers keep 32 bits of a tag and drop the rest

_GRAPH, _INITIALIZER, _EXTERNAL_DATA, _ENTRY_KEY, _ENTRY_VALUE = 7, 5, 13, 1, 2


class Message:
    """The fields of one message, read once. Fields of another wire type than asked for are skipped, as protobuf does.

    A field that may occur once is merged as protobuf merges it: the last number or string counts, and of several
    sub-messages the bytes one after the other are the merged one.
    """

    __slots__ = ("_bytes", "_fixed32", "_varints")

    def __init__(self, data: memoryview) -> None:
        self._bytes: dict[int, list[memoryview]] = {}
        self._varints: dict[int, list[int]] = {}
        self._fixed32: dict[int, list[bytes]] = {}
        for number, kind, value, number_value in _walk(data):
            if kind == BYTES:
                self._bytes.setdefault(number, []).append(value)
            elif kind == VARINT:
                self._varints.setdefault(number, []).append(number_value)
            elif kind == FIXED32:
                self._fixed32.setdefault(number, []).append(bytes(value))

    def has(self, number: int) -> bool:
        return number in self._bytes or number in self._varints or number in self._fixed32

    def all_bytes(self, number: int) -> list[memoryview]:
        """Every occurrence of a repeated string, bytes or message field."""
        return self._bytes.get(number, [])

    def merged(self, number: int) -> Message:
        """A sub-message that may occur once; empty if absent."""
        parts = self.all_bytes(number)
        return Message(parts[0] if len(parts) == 1 else memoryview(b"".join(parts)))

    def messages(self, number: int) -> list[Message]:
        """A repeated sub-message."""
        return [Message(part) for part in self.all_bytes(number)]

    def data(self, number: int) -> bytes:
        """A bytes field; empty if absent."""
        parts = self.all_bytes(number)
        return bytes(parts[-1]) if parts else b""

    def text(self, number: int) -> str:
        """A string field; empty if absent."""
        return self.data(number).decode("utf-8", "surrogateescape")

    def texts(self, number: int) -> tuple[str, ...]:
        return tuple(bytes(part).decode("utf-8", "surrogateescape") for part in self.all_bytes(number))

    def integer(self, number: int) -> int:
        """An int64 field; 0 if absent."""
        values = self._varints.get(number)
        return _signed(values[-1]) if values else 0

    def integers(self, number: int) -> tuple[int, ...]:
        """A repeated int64 field, packed or not.

        Raises:
            ModelError: both forms at once, whose order is lost here.
        """
        packed = self.all_bytes(number)
        if packed and number in self._varints:
            raise ModelError(f"field {number} mixes packed and single numbers; write the model again with onnx")
        return tuple(map(_signed, self._varints.get(number, ()))) + tuple(
            _signed(value) for part in packed for value in _packed(part)
        )

    def real(self, number: int) -> float:
        """A float field; 0 if absent."""
        values = self._fixed32.get(number)
        return float(struct.unpack("<f", values[-1])[0]) if values else 0.0


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
    return ((number, value) for number, kind, value, _ in _walk(data) if kind == BYTES)


def _walk(data: memoryview) -> Iterator[tuple[int, int, memoryview, int]]:
    """(field number, wire type, its bytes, its number if it is a varint) of one message, in order."""
    at, end = 0, len(data)
    while at < end:
        tag, at = _read_varint(data, at)
        kind, size, value = tag & 7, 0, 0
        if tag > _MAX_TAG or tag < 8:
            raise ModelError(f"not an ONNX file: field number {tag >> 3} at byte {at} is not one of protobuf's")
        if kind == VARINT:
            value, at = _read_varint(data, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        elif kind == BYTES:
            size, at = _read_varint(data, at)
        else:
            raise ModelError(f"not an ONNX file: wire type {kind} at byte {at} is not protobuf as ONNX uses it")
        if at + size > end:
            missing = at + size - end
            raise ModelError(f"not a whole ONNX file: a field runs {missing} bytes past its end; it may be truncated")
        yield tag >> 3, kind, data[at : at + size], value
        at += size


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _read_varint(data, at)
        yield value


def _signed(value: int) -> int:
    value &= 0xFFFF_FFFF_FFFF_FFFF
    return value - (1 << 64) if value >= 1 << 63 else value


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
