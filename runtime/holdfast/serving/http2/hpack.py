"""Header compression (RFC 7541): a decoder with its dynamic table, and an encoder that needs none.

Rules: the table never holds more than we announced; a size update may only shrink it and only stands at a block's
start; integers end within 5 bytes; a list larger than the bound is read to its end, because the table must keep step,
but not kept. Names and values are text, one character per byte (latin-1): what they may contain is `heads.py`'s matter.

Why the encoder uses no table: answers repeat a handful of constant blocks, which are then constant bytes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from holdfast.serving.http2 import huffman
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode
from holdfast.serving.http2.limits import DEFAULT_TABLE_BYTES

Field = tuple[str, str]

ENTRY_OVERHEAD_BYTES = 32  # RFC 7541 4.1
MAX_INTEGER = 2**28  # five bytes at most: far above any length or index that can be right

# RFC 7541 Appendix A; index 0 is not used.
_STATIC = """
|
:authority|
:method|GET
:method|POST
:path|/
:path|/index.html
:scheme|http
:scheme|https
:status|200
:status|204
:status|206
:status|304
:status|400
:status|404
:status|500
accept-charset|
accept-encoding|gzip, deflate
accept-language|
accept-ranges|
accept|
access-control-allow-origin|
age|
allow|
authorization|
cache-control|
content-disposition|
content-encoding|
content-language|
content-length|
content-location|
content-range|
content-type|
cookie|
date|
etag|
expect|
expires|
from|
host|
if-match|
if-modified-since|
if-none-match|
if-range|
if-unmodified-since|
last-modified|
link|
location|
max-forwards|
proxy-authenticate|
proxy-authorization|
range|
referer|
refresh|
retry-after|
server|
set-cookie|
strict-transport-security|
transfer-encoding|
user-agent|
vary|
via|
www-authenticate|
"""
STATIC: tuple[Field, ...] = tuple(
    (name, value) for name, _, value in (line.partition("|") for line in _STATIC.strip().split("\n"))
)
STATIC_COUNT = len(STATIC) - 1


class HeaderListTooLarge(Exception):
    """The list exceeds the bound. The table is in step: only this one stream is refused (RFC 9113 10.5.1)."""


class Decoder:
    """Reads header blocks of one connection, in their order.

    `version` changes whenever the dynamic table does: what was learned about a block holds while it stays.
    """

    def __init__(self, max_table_bytes: int, max_list_bytes: int) -> None:
        self._max_table_bytes = max_table_bytes
        self._max_list_bytes = max_list_bytes
        self._limit_bytes = min(max_table_bytes, DEFAULT_TABLE_BYTES)
        self._size_bytes = 0
        self._table: deque[Field] = deque()
        self.version = 0

    @property
    def table_size_bytes(self) -> int:
        return self._size_bytes

    def decode(self, block: bytes) -> list[Field]:
        """The fields of one whole block.

        Raises:
            ConnectionFault: COMPRESSION_ERROR (RFC 7541 2.3.3, 3.2, 4.2, 5.2, 6.1).
            HeaderListTooLarge: more than the bound.
        """
        fields: list[Field] = []
        left = self._max_list_bytes
        at, end = 0, len(block)
        try:
            while at < end and block[at] & 0xE0 == 0x20:  # RFC 7541 4.2: size updates, only here
                at = self._resize(block, at)
            while at < end:
                first = block[at]
                if first & 0x80:  # RFC 7541 6.1: indexed field
                    if first == 0xFF:
                        index, at = _integer(block, at, 0x7F)
                    else:
                        index, at = first & 0x7F, at + 1
                    field = self._entry(index)
                elif first & 0x40:  # RFC 7541 6.2.1: literal, to be kept
                    field, at = self._literal(block, at, 0x3F)
                    self._add(field)
                elif first & 0x20:
                    raise _fault("a table size update after the first field")
                else:  # RFC 7541 6.2.2, 6.2.3: literal, not to be kept
                    field, at = self._literal(block, at, 0x0F)
                left -= len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
                if left >= 0:
                    fields.append(field)
        except IndexError as error:
            raise _fault("a header block ends inside a field") from error
        if left < 0:
            raise HeaderListTooLarge
        return fields

    def _entry(self, index: int) -> Field:
        if 0 < index <= STATIC_COUNT:
            return STATIC[index]
        if index == 0 or index - STATIC_COUNT > len(self._table):  # RFC 7541 2.3.3, 6.1
            raise _fault("an index outside the tables")
        return self._table[index - STATIC_COUNT - 1]

    def _literal(self, block: bytes, at: int, mask: int) -> tuple[Field, int]:
        index = block[at] & mask
        if index == 0:
            name, at = _string(block, at + 1)
        else:
            if index == mask:
                index, at = _integer(block, at, mask)
            else:
                at += 1
            name = self._entry(index)[0]
        value, at = _string(block, at)
        return (name, value), at

    def _add(self, field: Field) -> None:
        """RFC 7541 4.4: an entry larger than the table empties it and is no error."""
        self.version += 1
        size = len(field[0]) + len(field[1]) + ENTRY_OVERHEAD_BYTES
        self._shrink(self._limit_bytes - size)
        if size <= self._limit_bytes:
            self._table.appendleft(field)
            self._size_bytes += size

    def _resize(self, block: bytes, at: int) -> int:
        size, at = _integer(block, at, 0x1F)
        if size > self._max_table_bytes:  # RFC 7541 6.3
            raise _fault("a table size above the announced one")
        self.version += 1
        self._limit_bytes = size
        self._shrink(size)
        return at

    def _shrink(self, size: int) -> None:
        table = self._table
        while table and self._size_bytes > size:
            name, value = table.pop()
            self._size_bytes -= len(name) + len(value) + ENTRY_OVERHEAD_BYTES


def encode(fields: Iterable[Field]) -> bytes:
    """A header block of literals that no table keeps, but for static entries that fit whole or by name."""
    out = bytearray()
    for name, value in fields:
        whole = _STATIC_WHOLE.get((name, value))
        if whole is not None:
            out.append(0x80 | whole)
            continue
        index = _STATIC_NAME.get(name, 0)
        out += _number(index, 0x0F, 0x00)
        if index == 0:
            out += _number(len(name), 0x7F, 0x00) + name.encode("latin-1")
        out += _number(len(value), 0x7F, 0x00) + value.encode("latin-1")
    return bytes(out)


_STATIC_WHOLE = {field: index for index, field in enumerate(STATIC) if index}
_STATIC_NAME = {name: index for index, (name, _) in reversed(list(enumerate(STATIC))) if index}


def _integer(block: bytes, at: int, mask: int) -> tuple[int, int]:
    """RFC 7541 5.1: the integer whose prefix lies in byte `at`, and where it ends."""
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    shift = 0
    while True:
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 21:
            raise _fault("an integer of more than five bytes")
    if value > MAX_INTEGER:
        raise _fault("an integer out of range")
    return value, at


def _string(block: bytes, at: int) -> tuple[str, int]:
    """RFC 7541 5.2."""
    first = block[at]
    if first & 0x7F == 0x7F:
        size, at = _integer(block, at, 0x7F)
    else:
        size, at = first & 0x7F, at + 1
    end = at + size
    data = block[at:end]
    if len(data) != size:
        raise _fault("a string reaches beyond its header block")
    if first & 0x80:
        try:
            data = huffman.decode(data)
        except huffman.HuffmanError as error:
            raise _fault(str(error)) from error
    return data.decode("latin-1"), end


def _number(value: int, mask: int, flags: int) -> bytes:
    """RFC 7541 5.1, the other way."""
    if value < mask:
        return bytes((flags | value,))
    out = bytearray((flags | mask,))
    value -= mask
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fault(text: str) -> ConnectionFault:
    return ConnectionFault(ErrorCode.COMPRESSION_ERROR, text)
