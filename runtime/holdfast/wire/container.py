"""The canonical container: named files in one run of bytes, of which exactly one spelling exists.

    offset  field
    0       magic "HOLDFAST" (8 bytes)
    8       version (2 bytes) = 1
    10      kind: length (1 byte), then ASCII, for example "bundle"
            number of files (4 bytes)
            per file, sorted by name: name length (2 bytes), name (ASCII), size (8 bytes), SHA-256 of its content
            SHA-256 of everything above
            the contents, one after the other, without gaps; nothing follows

Numbers are unsigned and big-endian. The reader serialises what it parsed again and compares every byte, so two
different containers never hold the same files, and what it does not understand it refuses. The digests find damage and
name the damaged file; they prove nothing about who wrote it, signatures inside do that. Content is not compressed: a
reader never allocates more than it was handed.

Why not zip or tar: both have several spellings of the same content, names that leave the folder, and two places
(local header, central directory) that can disagree, so that two readers see different files under one signature.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from holdfast.errors import FormatError

MAGIC = b"HOLDFAST"
VERSION = 1

_NAME = re.compile(r"(?!\.{1,2}(/|$))[A-Za-z0-9._+-]+(/(?!\.{1,2}(/|$))[A-Za-z0-9._+-]+)*", re.ASCII)
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}", re.ASCII)
_DIGEST_BYTES = 32
_MAX_NAME_BYTES = 255  # what one path may have on common file systems, with the folders counted in


@dataclass(frozen=True, slots=True)
class ContainerLimits:
    """What a reader is ready to take in; checked before anything is parsed or copied."""

    max_files: int = 4_096  # a bundle has about 20; an evidence export one per record kind and day
    max_file_bytes: int = 2_147_483_648  # 2 GiB, also the limit of one protobuf and so of an ONNX file
    max_total_bytes: int = 4_294_967_296  # 4 GiB


DEFAULT_LIMITS = ContainerLimits()


@dataclass(frozen=True, slots=True)
class FileSpan:
    """Where one file's content lies in a container, and the SHA-256 that its header says it has."""

    name: str
    offset: int
    size_bytes: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    size_bytes: int
    digest: bytes


def write_container(kind: str, files: Mapping[str, bytes]) -> bytes:
    """Serialise `files` (name to content) as a container of `kind`; the same files give the same bytes.

    Raises:
        FormatError: a name is not allowed (relative path of A-Z a-z 0-9 . _ + -, at most 255 bytes), or is both a file
            and a folder; or `kind` is not allowed.
    """
    _check_kind(kind)
    names = sorted(files)
    _check_names(names)
    entries = [_Entry(name, len(files[name]), hashlib.sha256(files[name]).digest()) for name in names]
    return b"".join([_header(kind, entries), *(files[name] for name in names)])


def read_container(data: bytes, kind: str, *, limits: ContainerLimits = DEFAULT_LIMITS) -> dict[str, bytes]:
    """Read a container of `kind`; returns name to content, sorted by name. Content is copied.

    Raises:
        FormatError: naming the offset and what is wrong there.
    """
    if len(data) > limits.max_total_bytes:
        raise FormatError(f"container has {len(data)} bytes, at most {limits.max_total_bytes} are read")
    reader = _Reader(data)
    entries = _read_entries(reader, kind, limits)
    header_end = reader.offset
    reader.take(_DIGEST_BYTES, "header digest")
    # the whole header at once: every byte of it, in its one spelling, digest included
    expected = _header(kind, entries)
    if data[: reader.offset] != expected:
        raise FormatError(f"container header does not match its digest at offset {header_end}: it was changed")
    contents = {entry.name: _read_content(reader, entry) for entry in entries}
    if reader.offset != len(data):
        raise FormatError(f"container has {len(data) - reader.offset} bytes too many at offset {reader.offset}")
    return contents


def read_spans(data: bytes, kind: str, *, limits: ContainerLimits = DEFAULT_LIMITS) -> tuple[FileSpan, ...]:
    """Where the files of a container would lie by its header. For naming damage: no digest is checked.

    Raises:
        FormatError: the header itself cannot be parsed.
    """
    reader = _Reader(data)
    entries = _read_entries(reader, kind, limits)
    reader.take(_DIGEST_BYTES, "header digest")
    offset, spans = reader.offset, []
    for entry in entries:
        spans.append(FileSpan(entry.name, offset, entry.size_bytes, entry.digest))
        offset += entry.size_bytes
    return tuple(spans)


class _Reader:
    """Takes bytes from the front, and knows where it is."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.offset = 0

    def take(self, count: int, what: str) -> bytes:
        end = self.offset + count
        if end > len(self._data):
            missing = end - len(self._data)
            raise FormatError(f"container is cut off: {what} at offset {self.offset} lacks {missing} bytes")
        taken = self._data[self.offset : end]
        self.offset = end
        return taken

    def number(self, width: int, what: str) -> int:
        return int.from_bytes(self.take(width, what), "big")


def _read_entries(reader: _Reader, kind: str, limits: ContainerLimits) -> list[_Entry]:
    if reader.take(len(MAGIC), "magic") != MAGIC:
        raise FormatError(f"not a container at offset 0: expected the magic {MAGIC.decode()}")
    version = reader.number(2, "version")
    if version != VERSION:
        raise FormatError(f"container version at offset 8 is {version}, expected {VERSION}; use a newer holdfast")
    offset = reader.offset
    got = reader.take(reader.number(1, "length of kind"), "kind")
    if got != kind.encode():
        raise FormatError(f"container kind at offset {offset} is {got.decode('ascii', 'replace')!r}, expected {kind!r}")
    offset = reader.offset
    count = reader.number(4, "number of files")
    if count > limits.max_files:
        raise FormatError(f"container has {count} files at offset {offset}, at most {limits.max_files} are read")
    entries = [_read_entry(reader, limits) for _ in range(count)]
    names = [entry.name for entry in entries]
    if any(before >= after for before, after in pairwise(names)):
        raise FormatError(f"container names at offset {offset + 4} are not sorted or not unique")
    _check_names(names)
    return entries


def _read_entry(reader: _Reader, limits: ContainerLimits) -> _Entry:
    offset = reader.offset
    length = reader.number(2, "length of name")
    if length > _MAX_NAME_BYTES:
        raise FormatError(f"container name at offset {offset} has {length} bytes, at most {_MAX_NAME_BYTES} are read")
    name = reader.take(length, "name").decode("ascii", "replace")
    if _NAME.fullmatch(name) is None:
        raise FormatError(f"container name at offset {offset} is {name!r}, expected a relative path")
    offset = reader.offset
    size_bytes = reader.number(8, f"size of {name}")
    if size_bytes > limits.max_file_bytes:
        raise FormatError(
            f"container file {name} at offset {offset} has {size_bytes} bytes, at most {limits.max_file_bytes} are read"
        )
    return _Entry(name, size_bytes, reader.take(_DIGEST_BYTES, f"digest of {name}"))


def _read_content(reader: _Reader, entry: _Entry) -> bytes:
    offset = reader.offset
    content = reader.take(entry.size_bytes, f"content of {entry.name}")
    if hashlib.sha256(content).digest() != entry.digest:
        end = offset + entry.size_bytes
        raise FormatError(f"container file {entry.name} at offsets {offset} to {end} was changed: its digest differs")
    return content


def _header(kind: str, entries: list[_Entry]) -> bytes:
    parts = [MAGIC, struct.pack(">HB", VERSION, len(kind)), kind.encode("ascii"), struct.pack(">I", len(entries))]
    for entry in entries:
        name = entry.name.encode("ascii")
        parts += [struct.pack(">H", len(name)), name, struct.pack(">Q", entry.size_bytes), entry.digest]
    header = b"".join(parts)
    return header + hashlib.sha256(header).digest()


def _check_kind(kind: str) -> None:
    if _KIND.fullmatch(kind) is None:
        raise FormatError(f"container kind {kind!r} is not allowed; use a-z, 0-9 and '-', 32 characters at most")


def _check_names(names: list[str]) -> None:
    known = set(names)
    for name in names:
        if len(name) > _MAX_NAME_BYTES or _NAME.fullmatch(name) is None:
            raise FormatError(f"container name {name!r} is not a relative path of A-Z a-z 0-9 . _ + - with 255 bytes")
        parts = name.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in known:
                raise FormatError(f"container name {folder!r} is a file and also the folder of {name!r}")
