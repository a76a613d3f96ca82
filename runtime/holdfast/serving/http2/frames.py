"""HTTP/2 frames (RFC 9113 4 and 6): types, flags, and the bytes of those we send.

Rules: nothing here knows a connection's state. Reading happens in `receiver.py`, where a frame's header is checked
against that state before its payload is waited for.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntEnum
from typing import Final

from holdfast.serving.http2.errors import ConnectionFault, ErrorCode

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4

DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITY_FLAG: Final = 0x20

_HEADER: Final = struct.Struct(">HBBBI")  # length in 16 + 8 bits, type, flags, stream
_SETTING: Final = struct.Struct(">HI")
_TWO: Final = struct.Struct(">II")


class Setting(IntEnum):
    """RFC 9113 6.5.2."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """One frame."""
    size = len(payload)
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id) + payload


def header(kind: int, flags: int, stream_id: int, size: int) -> bytes:
    """The nine bytes before a payload of `size` bytes."""
    return _HEADER.pack(size >> 8, size & 0xFF, kind, flags, stream_id)


def settings(values: Mapping[Setting, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def read_settings(payload: bytes) -> list[tuple[int, int]]:
    """The entries of a SETTINGS payload, whose length is a multiple of six."""
    return [(key, value) for key, value in _SETTING.iter_unpack(payload)]


SETTINGS_ACK: Final = frame(SETTINGS, ACK, 0)


def unpadded(payload: bytes | memoryview) -> bytes | memoryview:
    """RFC 9113 6.1: the first octet says how many at the end are padding. Raises: ConnectionFault."""
    if not len(payload) or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def ping(data: bytes, *, ack: bool) -> bytes:
    return frame(PING, ACK if ack else 0, 0, data)


def goaway(last_stream_id: int, code: ErrorCode, text: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, _TWO.pack(last_stream_id, code) + text.encode("ascii", "replace"))


def reset(stream_id: int, code: ErrorCode) -> bytes:
    return frame(RST_STREAM, 0, stream_id, code.to_bytes(4, "big"))


def window_update(stream_id: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream_id, increment.to_bytes(4, "big"))


def header_frames(stream_id: int, block: bytes, max_frame_bytes: int, *, end_stream: bool) -> bytes:
    """HEADERS, and CONTINUATION for what does not fit (RFC 9113 6.10)."""
    first, rest = block[:max_frame_bytes], block[max_frame_bytes:]
    flags = END_STREAM if end_stream else 0
    if not rest:
        return frame(HEADERS, flags | END_HEADERS, stream_id, first)
    out = [frame(HEADERS, flags, stream_id, first)]
    while rest:
        part, rest = rest[:max_frame_bytes], rest[max_frame_bytes:]
        out.append(frame(CONTINUATION, 0 if rest else END_HEADERS, stream_id, part))
    return b"".join(out)
