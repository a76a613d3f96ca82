"""From header fields to a request's head (RFC 9113 8.2, 8.3), with a memory of what was read before.

Rules: pseudo-headers first, each once, none missing; lower-case names; nothing that belongs to one connection; a break
of these is the stream's fault, never the connection's. What is remembered holds only while the header table stays, and
only ever saves work: with `memoise` off the same heads come out. Heads are shared between requests: do not change one.

Why a memory: clients repeat their fields as one run of table indexes, and vary deadline, trace and id as literals
beside them. The run is looked up whole, the literals are read alone: 1 us instead of 6 for a gRPC call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast.serving.http2 import huffman
from holdfast.serving.http2.errors import ConnectionFault
from holdfast.serving.http2.hpack import ENTRY_OVERHEAD_BYTES, Decoder, Field
from holdfast.serving.http2.limits import MAX_KNOWN_HEADS

MAX_KNOWN_BLOCK_BYTES = 512  # of a block that is remembered: 64 of them are 32 KiB
# Fields that change from call to call. None has a meaning for the connection, or for the framing of a message.
VARYING = frozenset(
    ("baggage", "grpc-timeout", "grpc-trace-bin", "request-id", "traceparent", "tracestate", "x-request-id")
)

_RUN = re.compile(rb"[\x81-\xfe]*")  # RFC 7541 6.1: indexed fields, of one byte each
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")  # RFC 9113 8.2.1: no upper case
_VALUE = re.compile(r"[^\0\r\n]*\Z")  # RFC 9113 8.2.1, but for its ends
_PSEUDO = frozenset((":method", ":scheme", ":authority", ":path"))
_OF_CONNECTION = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))


@dataclass(slots=True)  # not frozen: that costs 1 us in every call with a deadline or a trace
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


_NAMES_CODED = {
    bytes((flag | len(coded),)) + coded: name
    for name in VARYING
    for flag, coded in ((0x00, name.encode()), (0x80, huffman.encode(name.encode())))
}


class HeadReader:
    """Reads the header blocks of one connection."""

    def __init__(self, decoder: Decoder, max_list_bytes: int, *, memoise: bool = True) -> None:
        self._decoder = decoder
        self._max_list_bytes = max_list_bytes
        self._memoise = memoise
        self._version = decoder.version
        self._known: dict[bytes, RequestHead] = {}

    def read(self, block: bytes) -> RequestHead:
        """The head of one request.

        Raises:
            ConnectionFault: the block cannot be decompressed.
            HeaderListTooLarge: more fields than allowed.
        """
        if not self._memoise:
            return head_of(self._decoder.decode(block))
        if self._version != self._decoder.version:
            self._forget()
        head = self._known.get(block) or self._varied(block)
        if head is None:
            head = head_of(self._decoder.decode(block))
            if self._version == self._decoder.version:
                self._remember(block, head)
        return head

    def _forget(self) -> None:
        self._known.clear()
        self._version = self._decoder.version

    def _remember(self, block: bytes, head: RequestHead) -> None:
        if len(block) <= MAX_KNOWN_BLOCK_BYTES:
            if len(self._known) >= MAX_KNOWN_HEADS:
                self._known.clear()
            self._known[block] = head

    def _varied(self, block: bytes) -> RequestHead | None:
        """The head of a block that is a run of indexes with literals of varying fields; None if it is not that."""
        at = start = _RUN.match(block).end()  # type: ignore[union-attr]  # matches the empty string too
        run, end = block[:at], len(block)
        more: dict[str, str] = {}
        size = 0
        try:
            while at < end:
                if block[at] & 0xEF:  # RFC 7541 6.2.2, 6.2.3 with a new name: 0x00, 0x10
                    return None
                value_at = at + 2 + (block[at + 1] & 0x7F)
                name = _NAMES_CODED.get(block[at + 1 : value_at])
                length = block[value_at]
                if name is None or name in more or length & 0x7F == 0x7F:
                    return None
                at = value_at + 1 + (length & 0x7F)
                raw = block[value_at + 1 : at]
                value = (huffman.decode(raw) if length & 0x80 else raw).decode("latin-1")
                if at > end or _is_bad(value):
                    return None
                more[name] = value
                size += len(name) + len(value) + ENTRY_OVERHEAD_BYTES
                if at < end and block[at] & 0x80:
                    run_end = _RUN.match(block, at).end()  # type: ignore[union-attr]  # as above
                    if run_end == at:
                        return None
                    run += block[at:run_end]
                    at = run_end
        except (IndexError, huffman.HuffmanError):
            return None  # the whole decoder says what is wrong with it
        return self._joined(run, start, more, size)

    def _joined(self, run: bytes, start: int, more: dict[str, str], size: int) -> RequestHead | None:
        head = self._known.get(run)
        if head is None:
            if not run:
                return None
            try:
                head = head_of(self._decoder.decode(run))
            except ConnectionFault:
                return None
            self._remember(run, head)
        # the pseudo-headers are the first fields of a head without defect: the literals must come after all four
        if head.defect or start < len(_PSEUDO) or head.size_bytes + size > self._max_list_bytes:
            return None
        if not more:
            return head
        if not more.keys().isdisjoint(head.headers):
            return None
        return RequestHead(
            head.method,
            head.scheme,
            head.authority,
            head.path,
            {**head.headers, **more},
            head.content_length,
            head.size_bytes + size,
        )


def head_of(fields: Iterable[Field]) -> RequestHead:
    """The head that these fields make; its `defect` names the first rule they break."""
    pseudo: dict[str, str] = {}
    headers: dict[str, str] = {}
    size, defect = 0, ""
    for name, value in fields:
        size += len(name) + len(value) + ENTRY_OVERHEAD_BYTES
        if name.startswith(":"):
            defect = defect or _pseudo_defect(name, value, pseudo, headers)
            pseudo[name] = value
            continue
        defect = defect or _field_defect(name, value)
        if name in headers:
            joint = "; " if name == "cookie" else ","  # RFC 9113 8.2.3, RFC 9110 5.2
            value = headers[name] + joint + value
        headers[name] = value
    if not defect:
        defect = _request_defect(pseudo, headers)
    length = headers.get("content-length")
    return RequestHead(
        pseudo.get(":method", ""),
        pseudo.get(":scheme", ""),
        pseudo.get(":authority", headers.get("host", "")),
        pseudo.get(":path", ""),
        headers,
        int(length) if length is not None and not defect else None,
        size,
        defect,
    )


def trailers_defect(fields: Iterable[Field]) -> str:
    """What is wrong with a request's trailers, or nothing (RFC 9113 8.1)."""
    for name, value in fields:
        if name.startswith(":"):
            return "a pseudo-header among the trailers"
        if defect := _field_defect(name, value):
            return defect
    return ""


def _is_bad(value: str) -> bool:
    """RFC 9113 8.2.1: no NUL, CR or LF; no blank at either end."""
    return not _VALUE.match(value) or (value != "" and (value[0] in " \t" or value[-1] in " \t"))


def _pseudo_defect(name: str, value: str, seen: Mapping[str, str], headers: Mapping[str, str]) -> str:
    if headers:
        return "a pseudo-header after a field"
    if name not in _PSEUDO:
        return "an unknown pseudo-header"
    if name in seen:
        return "a pseudo-header given twice"
    return "a forbidden character in a pseudo-header" if _is_bad(value) else ""


def _field_defect(name: str, value: str) -> str:
    if not _NAME.match(name):
        return "a field name with a forbidden character"
    if _is_bad(value):
        return "a field value with a forbidden character"
    if name in _OF_CONNECTION or (name == "te" and value != "trailers"):  # RFC 9113 8.2.2
        return "a field that belongs to one connection"
    return ""


def _request_defect(pseudo: Mapping[str, str], headers: Mapping[str, str]) -> str:
    """RFC 9113 8.3.1."""
    if pseudo.get(":method") == "CONNECT":
        return "CONNECT is not offered"
    if not (pseudo.get(":method") and pseudo.get(":scheme") and pseudo.get(":path")):
        return "a pseudo-header is missing"
    if not pseudo[":path"].startswith("/") and not (pseudo[":path"] == "*" and pseudo[":method"] == "OPTIONS"):
        return "a path that does not start with a slash"
    length = headers.get("content-length")
    if length is not None and not (length.isascii() and length.isdigit() and len(length) < 19):
        return "a malformed content-length"
    return ""
