"""Heads of HTTP/1.1 requests, and those that came before: told from their octets, without reading them again.

Rules: a head is known by all of its octets but the value of a valid traceparent, which changes from request to request
and says nothing about the framing. Bounded; only ever saves work: the same requests come out without.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

MAX_KNOWN = 64  # heads remembered per connection; one client uses a handful
MAX_KNOWN_BYTES = 1_024  # of a head that is remembered
END = b"\r\n\r\n"
TRACEPARENT = "traceparent"

# A valid traceparent (W3C Trace Context 3.2), and its line as libraries write it; other heads are known as a whole.
_FORM = "[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}"
_VALID = re.compile(_FORM + r"\Z")
_TRACE = re.compile(rb"\r\ntraceparent: (%b)\r\n" % _FORM.encode())


class Head:
    """One request but for its body. Header names are lower case. Shared by requests that repeat it: do not change it.

    coding: of the body. trace: the traceparent it was first read with, if that was valid.
    size: octets of the body, if the head is one that is remembered; else -1.
    note: the holder's, to write down what it found out about requests behind this head; None at first.
    """

    __slots__ = ("coding", "headers", "keep_alive", "method", "note", "path", "size", "trace")

    def __init__(self, method: str, path: str, version: str, headers: Mapping[str, str]) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        connection = headers.get("connection", "").lower()
        self.keep_alive = connection != "close" if version == "HTTP/1.1" else connection == "keep-alive"
        self.coding = headers.get("content-encoding", "identity").lower()
        trace = headers.get(TRACEPARENT, "")
        self.trace = trace.encode() if _VALID.match(trace) else b""
        self.size = -1
        self.note: object = None

    def headers_with(self, trace: bytes) -> Mapping[str, str]:
        """The headers of a request that brought a traceparent of its own, or none."""
        return {**self.headers, TRACEPARENT: trace.decode()} if trace else self.headers


class KnownHeads:
    """Heads of one connection by their octets."""

    def __init__(self) -> None:
        self._known: dict[bytes, Head] = {}
        self._traced: dict[bytes, Head] = {}  # by their octets without the traceparent

    def find(self, raw: bytes) -> tuple[Head, bytes] | None:
        """The head that these octets are, its end included, and the traceparent that varies, if one does."""
        known = self._known.get(raw)
        if known is not None:
            return known, b""
        traced = _TRACE.search(raw)
        if traced is None:
            return None
        start, end = traced.span(1)
        known = self._traced.get(raw[:start] + raw[end:])
        return None if known is None else (known, traced[1])

    def remember(self, raw: bytes, head: Head, max_body_bytes: int) -> None:
        """Note a head that was just read; not one whose body has no length, or that a proxy might read otherwise."""
        headers = head.headers
        if "transfer-encoding" in headers or "expect" in headers:
            return
        if raw.count(b"\n\r\n") != 1 or b"\n\n" in raw:  # lines that end in a bare LF: the head ended earlier
            return
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= max_body_bytes):
            return
        head.size = int(length)
        if len(self._known) + len(self._traced) >= MAX_KNOWN:
            self._known.clear()
            self._traced.clear()
        traced = _TRACE.search(raw)
        if traced is not None and raw.lower().count(b"traceparent") == 1:
            start, end = traced.span(1)
            self._traced[raw[:start] + raw[end:]] = head
        else:
            self._known[raw] = head
