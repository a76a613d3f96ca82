"""From header fields to a request's head (RFC 9113 8.2, 8.3), with a memory of what was read before.

Rules: pseudo-headers first, each once, none missing; lower-case names; nothing that belongs to one connection; a break
of these is the stream's fault, never the connection's. What is remembered holds only while the header table stays, and
only ever saves work: with `memoise` off the same heads come out. Heads are shared between requests: do not change one.

Why a memory: clients repeat their fields, and vary deadline, trace and id as literals beside them. The shape of a block
(where the varying values stand in it) is learned once; from then on the values are cut out of it and the rest compared
with what it was: 0.8 us instead of 6 for a gRPC call with deadline and trace.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from holdfast.serving.http2.errors import ConnectionFault
from holdfast.serving.http2.hpack import ENTRY_OVERHEAD_BYTES, Decoder, Field, HeaderListTooLarge
from holdfast.serving.http2.limits import MAX_KNOWN_HEADS
from holdfast.serving.http2.shapes import PSEUDO, RequestHead, Shape, Varied, split

MAX_ALIKE: Final = 8  # shapes of one length: each is compared
MAX_KNOWN_BLOCK_BYTES: Final = 512  # of a block that is remembered: 64 of them are 32 KiB

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9a-z]+\Z")  # RFC 9113 8.2.1: no upper case
_VALUE: Final = re.compile(r"[^\0\r\n]*\Z")  # RFC 9113 8.2.1, but for its ends
_OF_CONNECTION: Final = frozenset(("connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"))


class HeadReader:
    """Reads the header blocks of one connection. `shapes`: those that were learned, by the length of their blocks."""

    def __init__(self, decoder: Decoder, max_list_bytes: int, *, memoise: bool = True) -> None:
        self.shapes: dict[int, list[Shape]] = {}
        self._decoder = decoder
        self._max_list_bytes = max_list_bytes
        self._memoise = memoise
        self._version = decoder.version
        self._count = 0
        self._bases: dict[bytes, RequestHead] = {}

    def read(self, block: bytes) -> Varied:
        """The shape of one request's head, and the values that vary.

        Raises:
            ConnectionFault: the block cannot be decompressed.
            HeaderListTooLarge: more fields than allowed.
        """
        for shape in self.shapes.get(len(block), ()):
            values = shape.read(block, 0)
            if values is not None:
                return shape, values
        learned = self._learn(block) if self._memoise else None
        if learned is not None:
            values = learned.read(block, 0)
            if values is not None:
                self._remember(len(block), learned)
                return learned, values
        version = self._version
        shape = Shape(head_of(self.decode(block)), block, [])
        if self._memoise and version == self._version and len(block) <= MAX_KNOWN_BLOCK_BYTES:
            self._remember(len(block), shape)
        return shape, ()

    def decode(self, block: bytes) -> list[Field]:
        """The fields of a block that is no request's head. Raises as `read` does."""
        try:
            return self._decoder.decode(block)
        finally:
            if self._version != self._decoder.version:
                self._forget()

    def _remember(self, size: int, shape: Shape) -> None:
        if self._count >= MAX_KNOWN_HEADS:
            self._count = 0
            self.shapes.clear()
        alike = self.shapes.setdefault(size, [])
        if len(alike) >= MAX_ALIKE:
            del alike[0]
            self._count -= 1
        alike.append(shape)
        self._count += 1

    def _forget(self) -> None:
        """The table has changed: the same octets may mean something else now."""
        self._count = 0
        self.shapes.clear()
        self._bases.clear()
        self._version = self._decoder.version

    def _learn(self, block: bytes) -> Shape | None:
        """The shape of a block that has varying fields with plain values, and changes no table; None for all others."""
        if len(block) > MAX_KNOWN_BLOCK_BYTES:
            return None
        rest, values = split(block)
        base = self._base(rest) if values else None
        if base is None or base.defect:
            return None
        names = [name for name, _, _ in values]
        size = sum(len(name) + end - start + ENTRY_OVERHEAD_BYTES for name, start, end in values)
        is_sound = len(set(names)) == len(names) and base.headers.keys().isdisjoint(names)
        return Shape(base, block, values) if is_sound and base.size_bytes + size <= self._max_list_bytes else None

    def _base(self, rest: bytes) -> RequestHead | None:
        """The head that a block without its varying fields makes; None if reading it would change the table."""
        base = self._bases.get(rest)
        if base is None:
            try:
                base = head_of(self._decoder.decode(rest))
            except (ConnectionFault, HeaderListTooLarge):
                return None  # the whole block says what is wrong with it
            if len(self._bases) >= MAX_KNOWN_HEADS:
                self._bases.clear()
            self._bases[rest] = base
        return base


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
    if name not in PSEUDO:
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
