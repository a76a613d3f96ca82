"""HTTP/1.1 requests out of bytes (RFC 9112), without a socket: framing and bounds. No routes, no answers, no clock.

Rules: the head is bounded; the body's length is known (Content-Length or chunked, never both) and bounded before it is
gathered; what is not plain HTTP/1.1 is refused rather than guessed, because a proxy in front might have read it
otherwise. A head that came before, byte for byte, is not read again; with `memoise` off the same requests come out.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from holdfast.serving.http1_heads import END, MAX_KNOWN_BYTES, Head, KnownHeads, Varied

MAX_LINE_BYTES = 8_192
MAX_HEADERS = 100
LARGE_BYTES = 262_144  # a body beyond it wants room that all connections share

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\Z")


class HttpError(Exception):
    """The framing is broken: answer `status`, then close. The text is for the client."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of one connection."""

    max_head_bytes: int = 32_768
    max_body_bytes: int = 64 * 1024**2
    head_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0


@dataclass(slots=True)  # not frozen: that costs 1 us in every request; nobody changes one
class HttpRequest:
    """One request. `path` is without the query; header names are lower case. Heads are shared: do not change one.

    head, varied: what it shares with others, and what not.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Body
    keep_alive: bool
    head: Head = field(compare=False, repr=False)
    varied: Varied = field(compare=False, repr=False)


class Phase(Enum):
    """What a parser waits for."""

    IDLE = "the first byte of a request"
    HEAD = "the rest of a head"
    BODY = "the rest of a body"


Body = bytes | memoryview  # a view of octets that are the request's own
T = TypeVar("T")
_Steps = Generator["HttpRequest | None", None, T]  # None: more bytes are needed


class HttpParser:
    """Requests of one connection, in their order. Holds at most one request and what was fed after it."""

    def __init__(self, limits: HttpLimits, *, memoise: bool = True, expands: bool = True) -> None:
        """expands: whether bodies come out without their content coding; else `expanded` is the holder's to call."""
        self._limits = limits
        self._expands = expands
        self._memoise = memoise
        self._buffer = bytearray()
        self._known = KnownHeads(limits.max_body_bytes)
        self._steps = self._requests()
        self.phase = Phase.IDLE
        self.owes_continue = False  # the peer waits for "100 Continue"; whoever sends it resets this
        self.wanted_bytes = 0  # how large the body is that is being read, or may get; 0 between bodies
        self.head: Head | None = None  # of the body that is being read
        self._place: memoryview | None = None  # for all of it
        self._filled = 0
        self._request: HttpRequest | None = None  # whole

    @property
    def held_bytes(self) -> int:
        """Fed and not yet part of a request that was returned."""
        return len(self._buffer)

    @property
    def has_place(self) -> bool:
        """Whether the body that is being read has octets of its own."""
        return self._place is not None

    def put(self, place: memoryview) -> None:
        """Gather the body that is being read there, which is as long as it says."""
        self._filled = len(self._buffer)
        place[: self._filled] = self._buffer
        self._buffer.clear()
        self._place = place

    def fill(self, data: Body) -> int:
        """Feed what belongs to a body that has a place. Returns how many octets did."""
        if self._place is None:
            return 0
        start, end = self._filled, min(self._filled + len(data), len(self._place))
        self._place[start:end] = data[: end - start]
        self._filled = end
        return end - start

    def feed(self, data: Body) -> None:
        taken = self.fill(data)
        self._buffer += data[taken:] if taken else data

    def next_request(self) -> HttpRequest | None:
        """The next request, or None while it is not whole.

        Raises:
            HttpError: it is malformed or too large. The parser is of no use afterwards.
        """
        if self.phase is Phase.IDLE and self._memoise:
            request = self._repeated()
            if request is not None:
                return request
        return next(self._steps)

    def close(self) -> None:
        """Let go of all that was fed: the peer is gone."""
        self._buffer.clear()
        self._steps = self._requests()
        self.head, self.phase, self.wanted_bytes = None, Phase.IDLE, 0
        self._place, self._filled, self._request = None, 0, None

    @property
    def is_resting(self) -> bool:
        """Whether nothing was fed that is not part of a request that was returned."""
        return not self._buffer and self.phase is Phase.IDLE

    def whole(self, data: bytes) -> tuple[Head, Varied, bytes] | None:
        """Head and body of the request that `data` is, no more and no less.

        None: it is something else, its head did not come before, or there is more to do about it; then feed it.
        """
        if self._buffer or not self._memoise or self.phase is not Phase.IDLE:
            return None
        end = data.find(END, 0, MAX_KNOWN_BYTES) + len(END)
        found = self._known.find(data[:end])
        if found is None:
            return None
        head, varied = found
        if len(data) != end + varied[1] or head.coding != "identity":
            return None
        return head, varied, data[end:]

    def _repeated(self) -> HttpRequest | None:
        """A whole request behind a head that was read before."""
        end = self._buffer.find(END, 0, MAX_KNOWN_BYTES)
        if end < 0:
            return None
        end += len(END)
        found = self._known.find(bytes(self._buffer[:end]))
        if found is None:
            return None
        head, varied = found
        if len(self._buffer) < end + varied[1]:
            return None
        body = bytes(memoryview(self._buffer)[end : end + varied[1]])
        del self._buffer[: end + varied[1]]
        return self._made(head, varied, body)

    def _made(self, head: Head, varied: Varied, body: Body) -> HttpRequest:
        headers = head.headers_with(varied)
        if self._expands:
            body = expanded(body, head.coding, self._limits.max_body_bytes)
        return HttpRequest(head.method, head.path, headers, body, head.keep_alive, head, varied)

    def _requests(self) -> _Steps[None]:
        while True:
            self.phase = Phase.IDLE
            while not self._buffer:
                yield None
            self.phase = Phase.HEAD
            known_end = self._buffer.find(END, 0, MAX_KNOWN_BYTES) if self._memoise else -1
            raw = bytes(self._buffer[: known_end + len(END)]) if known_end >= 0 else b""
            head = yield from self._head()
            self.phase = Phase.BODY
            if raw:
                self._known.remember(raw, head)
            self.head = head
            self._request = self._made(head, head.first, (yield from self._body(head.headers)))
            self.head, self.phase, self.wanted_bytes = None, Phase.IDLE, 0
            yield self._taken()

    def _taken(self) -> HttpRequest | None:
        """The request that is whole; nothing of it is kept."""
        request, self._request = self._request, None
        return request

    def _head(self) -> _Steps[Head]:
        budget = self._limits.max_head_bytes
        line = yield from self._line(budget)
        budget -= len(line)
        parts = line.split(b" ")
        if len(parts) != 3 or parts[2] not in (b"HTTP/1.1", b"HTTP/1.0"):
            raise HttpError(400, "not an HTTP/1.1 request; this port speaks HTTP/1.1 and gRPC (HTTP/2)")
        try:
            method, target = parts[0].decode("ascii"), parts[1].decode("ascii")
        except UnicodeDecodeError as error:
            raise HttpError(400, "the request line is not ASCII") from error
        if not _TOKEN.match(method) or not target.startswith("/"):
            raise HttpError(400, "malformed request line")
        headers: dict[str, str] = {}
        while line := (yield from self._line(budget)):
            budget -= len(line)
            if len(headers) >= MAX_HEADERS:
                raise HttpError(431, f"more than {MAX_HEADERS} headers")
            name, value = _header(line)
            if name in headers and name in ("content-length", "transfer-encoding", "host"):
                raise HttpError(400, f"header {name} is given twice")
            headers[name] = value
        if parts[2] == b"HTTP/1.0" and "transfer-encoding" in headers:  # RFC 9112 6.1: others may not have seen it
            raise HttpError(400, "Transfer-Encoding in HTTP/1.0")
        return Head(method, target.split("?", 1)[0], parts[2].decode("ascii"), headers)

    def _line(self, budget: int) -> _Steps[bytes]:
        """One line without its end."""
        searched = 0
        while (at := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > min(budget, MAX_LINE_BYTES):
                raise HttpError(431, "the request's head is too large")
            yield None
        if at > min(budget, MAX_LINE_BYTES):
            raise HttpError(431, "the request's head is too large")
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return line.removesuffix(b"\r")

    def _body(self, headers: Mapping[str, str]) -> _Steps[Body]:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None:
            if length is not None:  # RFC 9112 6.1: a sign of request smuggling
                raise HttpError(400, "Content-Length beside Transfer-Encoding")
            if coding.lower() != "chunked":
                raise HttpError(501, f"transfer coding {coding[:40]!r} is not offered; use chunked")
            self._note_expectation(headers)
            return (yield from self._chunks())
        if length is None:
            return b""
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            raise HttpError(400, f"malformed Content-Length {length[:40]!r}")
        size = self.wanted_bytes = self._bounded(int(length))
        self._note_expectation(headers)
        return (yield from self._exactly(size))

    def _note_expectation(self, headers: Mapping[str, str]) -> None:
        """Only once the bounds are kept: a peer that waits for this word should not send what is refused anyway."""
        self.owes_continue = headers.get("expect", "").lower() == "100-continue"

    def _chunks(self) -> _Steps[bytes]:
        body = bytearray()
        while True:
            match = _CHUNK_SIZE.match((yield from self._line(MAX_LINE_BYTES)))
            if match is None:
                raise HttpError(400, "malformed chunk size")
            size = int(match[1], 16)
            if size == 0:
                break
            if self._bounded(len(body) + size) > LARGE_BYTES:
                self.wanted_bytes = self._limits.max_body_bytes  # nobody says where it ends
            body += yield from self._exactly(size)
            if (yield from self._line(MAX_LINE_BYTES)):
                raise HttpError(400, "a chunk is longer than its size")
        for _ in range(MAX_HEADERS):  # trailers: allowed, not used
            if not (yield from self._line(MAX_LINE_BYTES)):
                return bytes(body)
        raise HttpError(431, f"more than {MAX_HEADERS} trailers")

    def _exactly(self, size: int) -> _Steps[Body]:
        while self._place is not None or len(self._buffer) < size:
            if self._place is not None and self._filled == size:
                place, self._place = self._place, None
                return place
            yield None
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def _bounded(self, size: int) -> int:
        if size > self._limits.max_body_bytes:
            raise HttpError(413, f"the body has {size} bytes; at most {self._limits.max_body_bytes} are taken")
        return size


def expanded(body: Body, coding: str, max_bytes: int) -> Body:
    """A body as it was before its content coding.

    Raises:
        HttpError: a coding that is not offered, a body that is not in it, or too large without it.
    """
    if coding == "identity":
        return body
    if coding not in ("gzip", "deflate"):
        raise HttpError(415, f"content coding {coding[:40]!r} is not offered; use gzip, deflate or none")
    expander = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, told by the header
    try:
        data = expander.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise HttpError(400, f"the body is not {coding}") from error
    if len(data) > max_bytes:
        raise HttpError(413, f"the body has {len(data)} bytes; at most {max_bytes} are taken")
    if not expander.eof or expander.unused_data:
        raise HttpError(400, f"the body is not whole {coding}")
    return data


def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.decode("latin-1").partition(":")
    if not colon or not _TOKEN.match(name):
        raise HttpError(400, "malformed header line")
    if "\0" in value or "\r" in value:
        raise HttpError(400, f"malformed value of header {name.lower()[:40]}")
    return name.lower(), value.strip(" \t")
