"""Heads of HTTP/1.1 requests, and those that came before: told from their octets, without reading them again.

Rules: a head is known by all of its octets but two values that change from request to request, where they are written
as libraries do: a valid traceparent, and the length of a body. Bounded; only ever saves work: the same requests come
out without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_KNOWN = 64  # heads remembered per connection; one client uses a handful
MAX_KNOWN_BYTES = 1_024  # of a head that is remembered
END = b"\r\n\r\n"
TRACEPARENT = "traceparent"

# A valid traceparent (W3C Trace Context 3.2), and what varies, as libraries write it; other heads are known as a whole.
_FORM = "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
_VALID = re.compile(_FORM + r"\Z")
_TRACE = re.compile(rb"\r\ntraceparent: (%b)\r\n" % _FORM.encode())
_LENGTH = re.compile(rb"\r\n[Cc]ontent-[Ll]ength: ([1-9][0-9]{0,8})\r\n")

Varied = tuple[bytes, int]  # traceparent, if that varies; octets of the body


class Head:
    """One request but for its body. Header names are lower case. Shared by requests that repeat it: do not change it.

    coding: of the body. trace: the traceparent it was first read with, if that was valid.
    first: what varies, as it was first read; -1 octets if the head is not remembered.
    note: the holder's, to write down what it found out about requests behind this head; None at first.
    """

    __slots__ = ("coding", "first", "headers", "keep_alive", "method", "note", "path", "trace")

    def __init__(self, method: str, path: str, version: str, headers: Mapping[str, str]) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        connection = headers.get("connection", "").lower()
        self.keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
        self.coding = headers.get("content-encoding", "identity").lower()
        trace = headers.get(TRACEPARENT, "")
        self.trace = trace.encode() if _VALID.match(trace) else b""
        self.first: Varied = (b"", -1)
        self.note: object = None

    def headers_with(self, varied: Varied) -> Mapping[str, str]:
        """The headers of a request in which this varied."""
        trace, size = varied
        if size == self.first[1] and not trace:
            return self.headers
        headers = dict(self.headers)
        if size != self.first[1]:
            headers["content-length"] = str(size)
        if trace:
            headers[TRACEPARENT] = trace.decode()
        return headers


class KnownHeads:
    """Heads of one connection by their octets. max_body_bytes: heads of larger bodies are not known."""

    def __init__(self, max_body_bytes: int) -> None:
        self._max_body_bytes = max_body_bytes
        self._whole: dict[bytes, Head] = {}
        self._cut: dict[tuple[bool, bool, bytes], Head] = {}  # whether there is a length, a traceparent; the rest

    def find(self, raw: bytes) -> tuple[Head, Varied] | None:
        """The head that these octets are, its end included, and what varies."""
        known = self._whole.get(raw)
        if known is not None:
            return known, known.first
        key, (trace, size) = _split(raw)
        known = self._cut.get(key)
        if known is None or size > self._max_body_bytes:
            return None
        return known, (trace, size if key[0] else known.first[1])

    def remember(self, raw: bytes, head: Head) -> None:
        """Note a head that was just read; not one whose body has no length, or that a proxy might read otherwise."""
        headers = head.headers
        if "transfer-encoding" in headers or "expect" in headers:
            return
        if raw.count(b"\n\r\n") != 1 or b"\n\n" in raw:  # lines that end in a bare LF: the head ended earlier
            return
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= self._max_body_bytes):
            return
        head.first = (b"", int(length))
        if len(self._whole) >= MAX_KNOWN:
            self._whole.clear()
            self._cut.clear()
        self._whole[raw] = head
        key, _ = _split(raw)
        if (key[0] or key[1]) and raw.lower().count(b"traceparent") == key[1]:
            self._cut[key] = head


def _split(raw: bytes) -> tuple[tuple[bool, bool, bytes], Varied]:
    """A head without what varies, and that."""
    traced = _TRACE.search(raw)
    trace = b""
    if traced is not None:
        start, end = traced.span(1)
        trace, raw = traced[1], raw[:start] + raw[end:]
    length = _LENGTH.search(raw)
    if length is None:
        return (False, traced is not None, raw), (trace, 0)
    start, end = length.span(1)
    return (True, traced is not None, raw[:start] + raw[end:]), (trace, int(length[1]))
