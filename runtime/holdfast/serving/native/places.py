"""Where the fields of a framed ModelInferRequest stand, for messages whose lengths all fit one or two octets.

Rules: looks at tags and lengths alone, and says None to whatever is not written in the order of the fields' numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from holdfast.serving.grpc_wire import PREFIX_BYTES

# Tags: field number << 3 | wire type 2 (ModelInferRequest 1, 2, 3, 5, 6, 7; ModelInferResponse 1, 2, 3, 5, 6).
_NAME: Final = 0x0A
_VERSION: Final = 0x12
_ID: Final = 0x1A
_INPUT: Final = 0x2A
_OUTPUT: Final = 0x32


@dataclass(frozen=True, slots=True)
class Places:
    """Name and version of a framed request, and where its id, its declarations and their end stand."""

    model: str
    version: str
    id_start: int
    id_end: int
    declared: int
    end: int


def places_of(head: bytes) -> Places | None:
    """Name, version, id and declarations, in the order of their numbers; None if there is anything else."""
    at = PREFIX_BYTES
    if head[0] or head[at] != _NAME or head[at + 1] > 0x7F:
        return None
    start, at = at + 2, at + 2 + head[at + 1]
    model, version = head[start:at].decode(), ""
    if head[at] == _VERSION:
        start, at = at + 2, at + 2 + head[at + 1]
        if head[start - 1] > 0x7F:
            return None
        version = head[start:at].decode()
    id_start = id_end = at
    if head[at] == _ID:
        id_start, id_end = at + 2, at + 2 + head[at + 1]
        if head[id_start - 1] > 0x7F:
            return None
    at = declared = id_end
    while (tag := head[at]) == _INPUT or tag == _OUTPUT:
        size = head[at + 1]
        if size > 0x7F:
            if head[at + 2] > 0x7F:
                return None
            at += 3 + (size & 0x7F | head[at + 2] << 7)
        else:
            at += 2 + size
    return Places(model, version, id_start, id_end, declared, at)


def varint(value: int) -> bytes:
    """A number as protobuf writes it."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
