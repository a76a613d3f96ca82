"""Header blocks that differ only in the values of fields that vary from call to call: where these stand in them.

Rules: a shape is learned from one block and holds for blocks of the same length; whatever is unusual in another block
makes it none of this shape, and it is read the long way. Only ever saves work: the same heads come out without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from holdfast.serving.http2 import huffman
from holdfast.serving.http2.hpack import ENTRY_OVERHEAD_BYTES, STATIC_COUNT

PSEUDO: Final = frozenset((":method", ":scheme", ":authority", ":path"))
# Fields that change from call to call. None has a meaning for the connection, or for the framing of a message.
VARYING: Final = frozenset(
    ("baggage", "grpc-timeout", "grpc-trace-bin", "request-id", "traceparent", "tracestate", "x-request-id")
)

_NAMES_CODED: Final = {
    bytes((flag | len(coded),)) + coded: name
    for name in VARYING
    for flag, coded in ((0x00, name.encode()), (0x80, huffman.encode(name.encode())))
}
_PLAIN: Final = bytes(range(0x21, 0x7F))  # of these no value is bad, wherever they stand

# A valid traceparent (W3C Trace Context 3.2) after `_TRACE_KINDS`: hexadecimal digits as "h", dashes as they are.
TRACEPARENT: Final = "traceparent"
TRACE_BYTES: Final = 55
_TRACE_KINDS: Final = bytes(0x68 if chr(n) in "0123456789abcdef" else n if n == 0x2D else 0 for n in range(256))
_TRACE_FORM: Final = b"-".join(b"h" * count for count in (2, 32, 16, 2))


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One request's fields. Header names are lower case; values of a repeated name are joined by a comma.

    `defect` says why the head is malformed, or is empty. `size_bytes` counts as RFC 9113 6.5.2 does.
    """

    method: str
    scheme: str
    authority: str
    path: str
    headers: Mapping[str, str]
    content_length: int | None
    size_bytes: int
    defect: str = ""

    def with_more(self, more: Mapping[str, str]) -> RequestHead:
        """This head with the fields that varied."""
        size = self.size_bytes + sum(len(name) + len(value) + ENTRY_OVERHEAD_BYTES for name, value in more.items())
        headers = {**self.headers, **more}
        return RequestHead(
            self.method, self.scheme, self.authority, self.path, headers, self.content_length, size, self.defect
        )


class Shape:
    """A block in which only values of varying fields change: where they stand, and what is around them.

    `base` is the head without those fields, `names` are theirs. `note` is the holder's, to write down what it found out
    about calls of this shape; None at first. `traced_at`: which of the values is a valid traceparent, or -1.
    """

    __slots__ = ("_cuts", "_fixed", "base", "names", "note", "traced_at")

    def __init__(self, base: RequestHead, block: bytes, values: list[tuple[str, int, int]]) -> None:
        self.base = base
        self.names = tuple(name for name, _, _ in values)
        forms = [(name, end - start) for name, start, end in values]
        self.traced_at = forms.index((TRACEPARENT, TRACE_BYTES)) if (TRACEPARENT, TRACE_BYTES) in forms else -1
        self.note: object = None
        starts = [0, *(end for _, _, end in values)]
        ends = [*(start for _, start, _ in values), len(block)]
        self._fixed = tuple((block[start:end], start) for start, end in zip(starts, ends, strict=True) if start < end)
        self._cuts = tuple((start, end, place == self.traced_at) for place, (_, start, end) in enumerate(values))

    def read(self, buffer: bytes, at: int) -> tuple[bytes, ...] | None:
        """The varying values of a block of the same length at a place of a buffer.

        None if the block is not of this shape, or a value is unusual: not plain ASCII without blanks, or as long as a
        traceparent and none.
        """
        for piece, start in self._fixed:
            if not buffer.startswith(piece, at + start):
                return None
        values = []
        for start, end, is_traceparent in self._cuts:
            value = buffer[at + start : at + end]
            if is_traceparent:
                if value.translate(_TRACE_KINDS) != _TRACE_FORM:
                    return None
            elif value.translate(None, _PLAIN):
                return None
            values.append(value)
        return tuple(values)


Varied = tuple[Shape, tuple[bytes, ...]]


def split(block: bytes) -> tuple[bytes, list[tuple[str, int, int]]]:
    """A block without its varying fields, and (name, start, end) of each value of them.

    No values if the block has anything but indexed fields of one byte and literals that enter no table, their names
    spelt out or of the static table, all shorter than 127 octets; if a varying value is Huffman-coded; or if one comes
    before four other fields, where pseudo-headers may stand.
    """
    at, end = 0, len(block)
    rest: list[bytes] = []
    values: list[tuple[str, int, int]] = []
    while at < end:
        first = block[at]
        if first & 0x80:  # RFC 7541 6.1
            if first in (0x80, 0xFF):
                return b"", []
            rest.append(block[at : at + 1])
            at += 1
            continue
        if first & 0xE0:  # RFC 7541 6.2.1, 6.3: changes the table
            return b"", []
        start, name = at, b""
        at += 1
        if first & 0x0F == 0x0F:  # RFC 7541 5.1: an index of two bytes; none of our names is in the static table
            at += 1
            if at > end or block[at - 1] > STATIC_COUNT - 0x0F:
                return b"", []
        elif first & 0x0F == 0:
            at, name = _string(block, at)
        value_at = at + 1
        at, _ = _string(block, at) if at else (0, b"")
        if at == 0:
            return b"", []
        known = _NAMES_CODED.get(name)
        if known is None:
            rest.append(block[start:at])
            continue
        if len(rest) < len(PSEUDO) or block[value_at - 1] & 0x80:
            return b"", []
        values.append((known, value_at, at))
    return b"".join(rest), values


def _string(block: bytes, at: int) -> tuple[int, bytes]:
    """Where a string literal of less than 127 octets ends, and its octets with their length; (0, "") for others."""
    if at >= len(block) or block[at] & 0x7F == 0x7F:
        return 0, b""
    end = at + 1 + (block[at] & 0x7F)
    return (end, block[at:end]) if end <= len(block) else (0, b"")
