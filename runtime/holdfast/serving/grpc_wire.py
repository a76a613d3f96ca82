"""gRPC on top of HTTP/2, without sockets: length-prefixed messages, status, timeouts (PROTOCOL-HTTP2).

Rules: a message is bounded before it is gathered and while it is expanded; messages of ours go out uncompressed; a
status text is percent-encoded, so that no text of ours can break a header.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping

from holdfast.serving.http2.hpack import encode

PREFIX_BYTES = 5  # one octet: compressed or not; four: the length
CONTENT_TYPE = "application/grpc"
MAX_STATUS_TEXT = 2_048  # characters of a status text: clients bound their metadata at 8 KiB

CODES: Mapping[str, int] = {
    "OK": 0,
    "CANCELLED": 1,
    "UNKNOWN": 2,
    "INVALID_ARGUMENT": 3,
    "DEADLINE_EXCEEDED": 4,
    "NOT_FOUND": 5,
    "ALREADY_EXISTS": 6,
    "PERMISSION_DENIED": 7,
    "RESOURCE_EXHAUSTED": 8,
    "FAILED_PRECONDITION": 9,
    "ABORTED": 10,
    "OUT_OF_RANGE": 11,
    "UNIMPLEMENTED": 12,
    "INTERNAL": 13,
    "UNAVAILABLE": 14,
    "DATA_LOSS": 15,
    "UNAUTHENTICATED": 16,
}
NOT_AS_ANNOUNCED = "expected one message, got another number of octets than it announced"
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])\Z")
_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_ENCODINGS = "identity,deflate,gzip"
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # zlib's numbers for the two containers

HEAD = encode(((":status", "200"), ("content-type", CONTENT_TYPE), ("grpc-accept-encoding", _ENCODINGS)))
OK_TRAILERS = encode((("grpc-status", "0"),))


class GrpcFault(Exception):
    """A call that breaks gRPC's own rules: the status to answer with."""

    def __init__(self, status: str, text: str) -> None:
        super().__init__(text)
        self.status = status


def is_grpc(content_type: str | None) -> bool:
    """Whether a content type says gRPC with protobuf messages."""
    return content_type is not None and (
        content_type == CONTENT_TYPE or content_type.startswith((CONTENT_TYPE + "+proto", CONTENT_TYPE + ";"))
    )


def timeout_s(text: str) -> float:
    """The seconds that a grpc-timeout allows.

    Raises:
        GrpcFault: not of that form.
    """
    match = _TIMEOUT.match(text)
    if match is None:
        raise GrpcFault("INTERNAL", "malformed grpc-timeout")
    return int(match[1]) * _UNIT_S[match[2]]


def message_size(prefix: bytes | bytearray | memoryview, max_bytes: int) -> int:
    """The length that a prefix announces.

    Raises:
        GrpcFault: more than allowed, or an unknown flag.
    """
    if prefix[0] > 1:
        raise GrpcFault("INTERNAL", "a message with unknown flags")
    size = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
    if size > max_bytes:
        raise GrpcFault("RESOURCE_EXHAUSTED", f"received message larger than max ({size} vs. {max_bytes})")
    return size


def unary_message(body: bytes | bytearray | memoryview, encoding: str | None, max_bytes: int) -> bytes | memoryview:
    """The one message of a whole body; a view where nothing had to be expanded.

    Raises:
        GrpcFault: no message, more than one, too large, or not what it says.
    """
    if len(body) < PREFIX_BYTES:
        raise GrpcFault("INTERNAL", "expected one message, got none")
    size = message_size(body, max_bytes)
    if len(body) != PREFIX_BYTES + size:
        raise GrpcFault("INTERNAL", NOT_AS_ANNOUNCED)
    if body[0]:
        return expanded(body[PREFIX_BYTES:], encoding, max_bytes)
    return body[PREFIX_BYTES:] if isinstance(body, bytes) else memoryview(body)[PREFIX_BYTES:]


def expanded(data: bytes | bytearray | memoryview, encoding: str | None, max_bytes: int) -> bytes:
    """A compressed message as it was.

    Raises:
        GrpcFault: unknown encoding, too large when expanded, or not in that encoding.
    """
    bits = _WINDOW_BITS.get(encoding or "identity")
    if bits is None:
        if encoding in (None, "identity"):
            raise GrpcFault("INTERNAL", "a compressed message without an encoding")
        raise GrpcFault("UNIMPLEMENTED", "this message encoding is not offered; use gzip, deflate or identity")
    expander = zlib.decompressobj(bits)
    try:
        message = expander.decompress(data, max_bytes + 1)
    except zlib.error as error:
        raise GrpcFault("INTERNAL", f"the message is not {encoding}") from error
    if len(message) > max_bytes:
        raise GrpcFault("RESOURCE_EXHAUSTED", f"received message larger than max ({max_bytes}) when expanded")
    if not expander.eof or expander.unused_data:
        raise GrpcFault("INTERNAL", f"the message is not whole {encoding}")
    return message


def framed_prefix(size: int) -> bytes:
    """The prefix of a message of ours."""
    return b"\0" + size.to_bytes(4, "big")


def percent_encoded(text: str) -> str:
    """A status text as a header value: everything but printable ASCII, and the percent sign, as %XX of UTF-8."""
    data = text[:MAX_STATUS_TEXT].encode("utf-8", "replace")
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x25 else f"%{byte:02X}" for byte in data)


def status_trailers(status: str, text: str, more: Mapping[str, str], *, alone: bool) -> bytes:
    """The block that ends a call. `alone`: no head was sent before ("Trailers-Only")."""
    fields = [(":status", "200"), ("content-type", CONTENT_TYPE)] if alone else []
    fields.append(("grpc-status", str(CODES[status])))
    if text:
        fields.append(("grpc-message", percent_encoded(text)))
    if alone and status == "UNIMPLEMENTED":
        fields.append(("grpc-accept-encoding", _ENCODINGS))
    return encode([*fields, *more.items()])


class MessageReader:
    """The messages of a stream, as their bytes come. Holds less than one message and a prefix.

    They are left as they are, with their prefixes, for `unary_message`: one alone may say a thousand times its size.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Messages that are whole now.

        Raises:
            GrpcFault: one is too large, or begins with no prefix.
        """
        buffer = self._buffer
        buffer += data
        messages = []
        while len(buffer) >= PREFIX_BYTES:
            end = PREFIX_BYTES + message_size(buffer, self._max_bytes)
            if len(buffer) < end:
                break
            messages.append(bytes(memoryview(buffer)[:end]))
            del buffer[:end]
        return messages

    @property
    def wanted_bytes(self) -> int:
        """Octets the message under way still needs; 0 between messages or before its length is known."""
        if len(self._buffer) < PREFIX_BYTES:
            return 0
        return PREFIX_BYTES + message_size(self._buffer, self._max_bytes) - len(self._buffer)

    @property
    def is_between(self) -> bool:
        """Whether no message is under way."""
        return not self._buffer
