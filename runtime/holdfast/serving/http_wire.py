"""HTTP/1.1 requests off a socket: framing, bounds and time limits (RFC 9112). No routes, no answers.

Rules: the head is bounded and must come within a time counted from its first byte; the body's length is known
(Content-Length or chunked, never both) and bounded before it is read; what is not plain HTTP/1.1 is refused rather than
guessed, because a proxy in front might have read it otherwise.
"""

from __future__ import annotations

import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.clock import Clock

MAX_LINE_BYTES = 8_192
MAX_HEADERS = 100
READ_BYTES = 65_536
DRAIN_BYTES = 1_048_576  # read and thrown away after a refusal, so that the peer gets to read it

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;.*)?\Z")


class ConnectionClosed(Exception):
    """The peer closed the connection between requests, or stopped sending."""


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


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One request. `path` is without the query; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    keep_alive: bool


class HttpReader:
    """Reads requests one after another from a blocking socket."""

    def __init__(self, connection: socket.socket, first: bytes, clock: Clock, limits: HttpLimits) -> None:
        self._connection = connection
        self._buffer = bytearray(first)
        self._clock = clock
        self._limits = limits
        self._deadline_s = 0.0

    def next_request(self) -> HttpRequest:
        """The next request.

        Raises:
            ConnectionClosed: there is none.
            HttpError: it is malformed, too large or too slow.
        """
        if not self._buffer:
            self._wait(self._limits.idle_timeout_s)
            try:
                self._fill()
            except HttpError as error:
                raise ConnectionClosed from error
        self._wait(self._limits.head_timeout_s)
        method, path, version, headers = self._head()
        self._wait(self._limits.body_timeout_s)
        body = self._decoded(self._body(headers), headers)
        connection = headers.get("connection", "").lower()
        keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
        return HttpRequest(method, path, headers, body, keep_alive)

    def drain(self) -> None:
        """Tell the peer that we are done, then read and forget what it still sends, bounded."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(1.0)
            left = DRAIN_BYTES
            while left > 0 and (data := self._connection.recv(READ_BYTES)):
                left -= len(data)
        except OSError:
            pass  # it is gone already

    def _wait(self, timeout_s: float) -> None:
        self._deadline_s = self._clock.monotonic_s() + timeout_s

    def _fill(self) -> None:
        left_s = self._deadline_s - self._clock.monotonic_s()
        if left_s <= 0:
            raise HttpError(408, "the request came too slowly")
        self._connection.settimeout(left_s)
        try:
            data = self._connection.recv(READ_BYTES)
        except TimeoutError as error:
            raise HttpError(408, "the request came too slowly") from error
        if not data:
            raise ConnectionClosed
        self._buffer += data

    def _head(self) -> tuple[str, str, str, dict[str, str]]:
        budget = self._limits.max_head_bytes
        line = self._line(budget)
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
        while line := self._line(budget):
            budget -= len(line)
            if len(headers) >= MAX_HEADERS:
                raise HttpError(431, f"more than {MAX_HEADERS} headers")
            name, value = _header(line)
            if name in headers and name in ("content-length", "transfer-encoding", "host"):
                raise HttpError(400, f"header {name} is given twice")
            headers[name] = value
        return method, target.split("?", 1)[0], parts[2].decode("ascii"), headers

    def _line(self, budget: int) -> bytes:
        """One line without its end."""
        searched = 0
        while (at := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > min(budget, MAX_LINE_BYTES):
                raise HttpError(431, "the request's head is too large")
            self._fill()
        if at > min(budget, MAX_LINE_BYTES):
            raise HttpError(431, "the request's head is too large")
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 1]
        return line.removesuffix(b"\r")

    def _body(self, headers: Mapping[str, str]) -> bytes:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is not None:
            if length is not None:  # RFC 9112 6.1: a sign of request smuggling
                raise HttpError(400, "Content-Length beside Transfer-Encoding")
            if coding.lower() != "chunked":
                raise HttpError(501, f"transfer coding {coding[:40]!r} is not offered; use chunked")
            self._say_continue(headers)
            return self._chunks()
        if length is None:
            return b""
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            raise HttpError(400, f"malformed Content-Length {length[:40]!r}")
        size = self._bounded(int(length))
        self._say_continue(headers)
        return self._exactly(size)

    def _say_continue(self, headers: Mapping[str, str]) -> None:
        """Only once the bounds are kept: a peer that waits for this word should not send what is refused anyway."""
        if headers.get("expect", "").lower() == "100-continue":
            self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _chunks(self) -> bytes:
        body = bytearray()
        while True:
            match = _CHUNK_SIZE.match(self._line(MAX_LINE_BYTES))
            if match is None:
                raise HttpError(400, "malformed chunk size")
            size = int(match[1], 16)
            if size == 0:
                break
            self._bounded(len(body) + size)
            body += self._exactly(size)
            if self._line(MAX_LINE_BYTES):
                raise HttpError(400, "a chunk is longer than its size")
        for _ in range(MAX_HEADERS):  # trailers: allowed, not used
            if not self._line(MAX_LINE_BYTES):
                return bytes(body)
        raise HttpError(431, f"more than {MAX_HEADERS} trailers")

    def _exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return data

    def _bounded(self, size: int) -> int:
        if size > self._limits.max_body_bytes:
            raise HttpError(413, f"the body has {size} bytes; at most {self._limits.max_body_bytes} are taken")
        return size

    def _decoded(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        coding = headers.get("content-encoding", "identity").lower()
        if coding == "identity":
            return body
        if coding not in ("gzip", "deflate"):
            raise HttpError(415, f"content coding {coding[:40]!r} is not offered; use gzip, deflate or none")
        expander = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: zlib or gzip, told by the header
        try:
            data = expander.decompress(body, self._limits.max_body_bytes + 1)
        except zlib.error as error:
            raise HttpError(400, f"the body is not {coding}") from error
        self._bounded(len(data))
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
