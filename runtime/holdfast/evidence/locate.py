"""Naming the changed byte of a damaged file: the hashes that are stored twice say what it was.

A container's digests only name the file. One changed byte can be found exactly: try every other value of every byte
until the digest holds again. In the log this is done for the one entry whose leaf hash no inclusion proof knows.
This is a help for people; nothing is trusted because of it, and what was changed in more places is only named
roughly. Work is bounded: about 10 seconds at most.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

from holdfast.errors import FormatError
from holdfast.evidence.entries import parse_entries, parse_entry
from holdfast.evidence.findings import Place
from holdfast.evidence.layout import CHECKPOINT, ENTRIES, FIGURES, KIND, LIMITS, MAX_ENTRIES, PROOFS, read_frames
from holdfast.evidence.tally import compute_figures
from holdfast.trust.merkle import HASH_BYTES, MerkleTree, leaf_hash
from holdfast.wire.container import FileSpan, read_spans
from holdfast.wire.messages import Report

MAX_SEARCHED_BYTES = 4_096  # a million hashes of 4 KiB: some seconds
MAX_LOCATED_BYTES = 67_108_864  # 64 MiB: a larger log is not searched
_LENGTH_BYTES = 4  # of one item in entries.bin
_LEAF_PREFIX = b"\x00"  # RFC 9162 2.1.1


def locate_change(data: bytes) -> tuple[Place, str] | None:
    """Where a damaged container differs from the one that was sealed, and in what; None if that cannot be told."""
    if len(data) > MAX_LOCATED_BYTES:
        return None
    try:
        spans = read_spans(data, KIND, limits=LIMITS)
    except FormatError:
        return None  # the reader's own message names the offset
    header_end = (spans[0].offset if spans else len(data)) - HASH_BYTES
    header, sealed = data[:header_end], data[header_end : header_end + HASH_BYTES]
    if hashlib.sha256(header).digest() != sealed:
        return _locate_in_header(data, header_end, spans)
    contents = {span.name: data[span.offset : span.offset + span.size_bytes] for span in spans}
    for span in spans:
        content = contents[span.name]
        if len(content) == span.size_bytes and hashlib.sha256(content).digest() != span.digest:
            return _locate_in_file(span, contents)
    return None


def find_changed_byte(data: bytes, holds: Callable[[bytes], bool], prefix: bytes = b"") -> tuple[int, int] | None:
    """(offset, right value) of the byte to change so that SHA-256(prefix || data) `holds`; None if no single one."""
    if len(data) > MAX_SEARCHED_BYTES:
        return None
    state = hashlib.sha256(prefix)
    for offset in range(len(data)):
        tail = data[offset + 1 :]
        for value in range(256):
            attempt = state.copy()
            attempt.update(bytes((value,)) + tail)
            if holds(attempt.digest()):
                return offset, value
        state.update(data[offset : offset + 1])
    return None


def _locate_in_header(data: bytes, end: int, spans: Sequence[FileSpan]) -> tuple[Place, str] | None:
    """The digest of the header itself, a digest of a file in it, or any one byte of it."""
    header, sealed = data[:end], data[end : end + HASH_BYTES]
    computed = hashlib.sha256(header).digest()
    changed = [k for k in range(len(sealed)) if sealed[k] != computed[k]]
    if len(changed) == 1:
        return _byte(Place("(header)", end + changed[0]), sealed[changed[0]], computed[changed[0]])
    mended = header
    for span in spans:  # replace every digest by that of the content: then a changed digest shows
        content = data[span.offset : span.offset + span.size_bytes]
        mended = mended.replace(span.digest, hashlib.sha256(content).digest(), 1)
    if hashlib.sha256(mended).digest() == sealed:
        at = next(k for k in range(len(header)) if header[k] != mended[k])
        return _byte(Place("(header)", at), header[at], mended[at])
    found = find_changed_byte(header, lambda digest: digest == sealed)
    return _byte(Place("(header)", found[0]), header[found[0]], found[1]) if found else None


def _locate_in_file(span: FileSpan, contents: Mapping[str, bytes]) -> tuple[Place, str] | None:
    content = contents[span.name]
    if span.name == ENTRIES:
        return _locate_in_entries(span, contents)
    if span.name == PROOFS:
        return _locate_in_proofs(span, contents)
    if span.name == FIGURES:
        return _locate_in_figures(span, contents)
    found = find_changed_byte(content, lambda digest: digest == span.digest)
    if found is None:
        return Place(span.name), "more than one byte was changed, or the file is too large to say which"
    return _byte(Place(span.name, span.offset + found[0]), content[found[0]], found[1])


def _locate_in_figures(span: FileSpan, contents: Mapping[str, bytes]) -> tuple[Place, str] | None:
    """The figures follow from the entries too."""
    try:
        entries = tuple(parse_entries(read_frames(contents.get(ENTRIES, b""), ENTRIES, max_count=MAX_ENTRIES)))
        right = compute_figures(entries).to_json()
    except FormatError:
        return None
    for at, (is_, was) in enumerate(zip(contents[FIGURES], right, strict=False)):
        if is_ != was:
            return _byte(Place(FIGURES, span.offset + at), is_, was)
    return None


def _locate_in_proofs(span: FileSpan, contents: Mapping[str, bytes]) -> tuple[Place, str] | None:
    """The proofs follow from the entries, so they are made again and compared."""
    proofs = contents[PROOFS]
    try:
        entries = read_frames(contents.get(ENTRIES, b""), ENTRIES, max_count=len(proofs) + 1)
    except FormatError:
        return None
    tree = MerkleTree(leaf_hash(entry) for entry in entries)
    offset = 0
    for index in range(tree.size):
        proof = tree.inclusion_proof(index, tree.size)
        right = bytes((len(proof),)) + b"".join(proof)
        got = proofs[offset : offset + len(right)]
        for k, (is_, was) in enumerate(zip(got, right, strict=False)):
            if is_ != was:
                return _byte(Place(PROOFS, span.offset + offset + k, entry=index), is_, was)
        offset += len(right)
    return None


def _locate_in_entries(span: FileSpan, contents: Mapping[str, bytes]) -> tuple[Place, str] | None:
    """The first entry whose leaf hash stands in no proof is the changed one; its bytes are searched."""
    data, known = contents[ENTRIES], _known_hashes(contents)
    start, index = 0, 0
    while start < len(data):
        body = start + _LENGTH_BYTES
        end = body + int.from_bytes(data[start:body], "big")
        if end > len(data) or leaf_hash(data[body:end]) not in known:
            return _locate_in_entry(span, data, (index, start, end), known)
        start, index = end, index + 1
    return None


def _locate_in_entry(
    span: FileSpan, data: bytes, frame: tuple[int, int, int], known: frozenset[bytes]
) -> tuple[Place, str] | None:
    index, start, end = frame
    body = start + _LENGTH_BYTES
    for k in range(_LENGTH_BYTES):  # the length field itself
        for value in range(256):
            size = int.from_bytes(data[start : start + k] + bytes((value,)) + data[start + k + 1 : body], "big")
            if size <= len(data) - body and leaf_hash(data[body : body + size]) in known:
                place = Place(ENTRIES, span.offset + start + k, entry=index, field="length")
                return _byte(place, data[start + k], value)
    entry = data[body:end]
    found = find_changed_byte(entry, lambda digest: digest in known, _LEAF_PREFIX)
    if found is None:
        return Place(ENTRIES, entry=index), "this is the first entry that was changed"
    at, value = found
    right = entry[:at] + bytes((value,)) + entry[at + 1 :]
    return _byte(_describe(index, right, at, span.offset + body + at), entry[at], value)


def _describe(index: int, entry: bytes, at: int, offset: int) -> Place:
    """The place of byte `at` of an undamaged entry in the words of what it holds."""
    try:
        parsed = parse_entry(index, entry)
    except FormatError:
        return Place(ENTRIES, offset, entry=index)
    field = parsed.kind
    for signature in parsed.envelope.signatures if parsed.envelope else ():
        first = entry.find(signature.signature)
        if first <= at < first + len(signature.signature):
            field = "signature"
    payload = parsed.envelope.payload if parsed.envelope else b""
    if payload and entry.find(payload) <= at < entry.find(payload) + len(payload):
        field = "payload"
    if isinstance(parsed.fact, Report):
        return Place(ENTRIES, offset, index, parsed.fact.device_id, parsed.fact.seq, field)
    return Place(ENTRIES, offset, index, field=field)


def _known_hashes(contents: Mapping[str, bytes]) -> frozenset[bytes]:
    """Every hash that stands in a proof, which includes every leaf's; and the root, for a log of one entry."""
    proofs, known, offset = contents.get(PROOFS, b""), set(), 0
    while offset < len(proofs):
        end = offset + 1 + proofs[offset] * HASH_BYTES
        known |= {proofs[at:to] for at, to in pairwise(range(offset + 1, end + 1, HASH_BYTES))}
        offset = end
    frames = contents.get(CHECKPOINT, b"").split(b"\n")
    return frozenset(known | _root_hash(frames))


def _root_hash(lines: Sequence[bytes]) -> set[bytes]:
    try:
        return {base64.b64decode(lines[2], validate=True)}
    except (IndexError, binascii.Error, ValueError):
        return set()


def _byte(place: Place, got: int, right: int) -> tuple[Place, str]:
    return place, f"byte {place.offset} of the file is 0x{got:02x}, it was sealed as 0x{right:02x}"
