"""What lies in an evidence file, and its two directions: values to bytes, bytes to values. Pure.

    meta.json          {"exported_utc_ns", "origin", "schema", "tree_size"}; the time is a claim, the rest is checked
    checkpoint         the log's signed note over all entries
    entries.bin        per entry: length (4 bytes, big-endian), the LedgerEntry as it was hashed; the whole log
    proofs.bin         per entry: number of hashes (1 byte), 32 bytes each: its inclusion proof (RFC 9162 2.1.3)
    promises.bin       optional; per promise: length (4 bytes), an Envelope of an InclusionPromise
    keys/<role>.pub, keys/<role>-<name>.pub     the public keys the exporter claims, PEM
    figures.json       the figures the exporter claims, canonical JSON
    scorecard.json     optional; a definition and the values claimed for it, canonical JSON

Every part has exactly one spelling: what is read is written again and compared. Proofs are stored although the whole
log is here, so that a later export of only some entries has the same form. Reading checks no signature.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from holdfast.errors import EvidenceError, FormatError
from holdfast.trust.keys import PublicKey
from holdfast.trust.merkle import HASH_BYTES, MAX_PROOF_HASHES
from holdfast.wire.container import ContainerLimits, read_container, write_container
from holdfast.wire.limits import MAX_MESSAGE_BYTES

KIND = "evidence"
SCHEMA = "holdfast/evidence/v1"
META, CHECKPOINT, ENTRIES, PROOFS = "meta.json", "checkpoint", "entries.bin", "proofs.bin"
PROMISES, FIGURES, SCORECARD, KEYS = "promises.bin", "figures.json", "scorecard.json", "keys/"
REQUIRED = frozenset({META, CHECKPOINT, ENTRIES, PROOFS, FIGURES})
OPTIONAL = frozenset({PROMISES, SCORECARD})

LEDGER, RUN, ASSIGNMENT, SITE, AUTHOR, APPROVER = "ledger", "run", "assignment", "site", "author", "approver"
ROLES = (LEDGER, RUN, ASSIGNMENT, SITE, AUTHOR, APPROVER)

MAX_ENTRIES = 1_048_576  # a year of 30 devices with a record every 15 minutes; verified in about 15 minutes on one core
MAX_ENTRIES_BYTES = 1_073_741_824  # 1 GiB: 1 KiB an entry
MAX_PROMISES = 65_536  # the last one of every device of a large fleet
MAX_KEYS = 1_024  # sites and persons of a large fleet
MAX_JSON_BYTES = 16_777_216  # 16 MiB: figures of ten thousand devices
LIMITS = ContainerLimits(
    max_files=MAX_KEYS + 16, max_file_bytes=MAX_ENTRIES_BYTES, max_total_bytes=2 * MAX_ENTRIES_BYTES
)

_KEY_FILE = re.compile(r"keys/([a-z]+)(?:-([A-Za-z0-9._-]{1,100}))?\.pub", re.ASCII)
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class ClaimedKey:
    """A public key that the exporter says belongs to a role; `name` is a site's or person's name, or empty."""

    role: str
    name: str
    key: PublicKey

    @property
    def file(self) -> str:
        return f"{KEYS}{self.role}-{self.name}.pub" if self.name else f"{KEYS}{self.role}.pub"


@dataclass(frozen=True, slots=True)
class Evidence:
    """The parts of an evidence file, in their form but not in their truth checked."""

    origin: str
    exported_utc_ns: int
    tree_size: int
    checkpoint: str
    entries: tuple[bytes, ...]
    proofs: tuple[tuple[bytes, ...], ...]
    keys: tuple[ClaimedKey, ...]
    figures: bytes
    scorecard: bytes | None = None
    promises: tuple[bytes, ...] = ()

    def keys_of(self, role: str) -> tuple[PublicKey, ...]:
        return tuple(claimed.key for claimed in self.keys if claimed.role == role)


def canonical_json(value: object) -> bytes:
    """The one spelling of a JSON value: keys sorted, no white space, UTF-8, floats as Python's `repr`.

    Raises:
        FormatError: a number is infinite or not a number.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except ValueError as error:
        raise FormatError(f"value cannot be written as JSON: {error}") from error


def parse_json(data: bytes, what: str, *, max_bytes: int = MAX_JSON_BYTES) -> object:
    """Read canonical JSON.

    Raises:
        FormatError: too large, not JSON, or not in its one canonical spelling.
    """
    if len(data) > max_bytes:
        raise FormatError(f"{what} has {len(data)} bytes, at most {max_bytes} are read")
    try:
        value: object = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON: {error}") from error
    if canonical_json(value) != data:
        raise FormatError(f"{what} is not canonical JSON: keys sorted, no white space")
    return value


def write_evidence(evidence: Evidence) -> bytes:
    """Serialise evidence as one container; the same evidence gives the same bytes."""
    meta = {
        "schema": SCHEMA,
        "origin": evidence.origin,
        "exported_utc_ns": evidence.exported_utc_ns,
        "tree_size": evidence.tree_size,
    }
    files = {
        META: canonical_json(meta),
        CHECKPOINT: evidence.checkpoint.encode(),
        ENTRIES: write_frames(evidence.entries),
        PROOFS: b"".join(bytes([len(proof)]) + b"".join(proof) for proof in evidence.proofs),
        FIGURES: evidence.figures,
    }
    for claimed in evidence.keys:
        if _KEY_FILE.fullmatch(claimed.file) is None or claimed.role not in ROLES or claimed.file in files:
            raise EvidenceError(
                f"key file {claimed.file!r} is not allowed or there twice; roles are {', '.join(ROLES)}"
            )
        files[claimed.file] = claimed.key.to_pem().encode()
    if evidence.scorecard is not None:
        files[SCORECARD] = evidence.scorecard
    if evidence.promises:
        files[PROMISES] = write_frames(evidence.promises)
    return write_container(KIND, files)


def read_evidence(data: bytes) -> Evidence:
    """Read an evidence file. Checks its form, not what it claims.

    Raises:
        FormatError: naming the file and the offset in it, or in the container, and what is wrong there.
    """
    return parse_files(read_container(data, KIND, limits=LIMITS))


def parse_files(files: Mapping[str, bytes]) -> Evidence:
    """The parts of an evidence file from the contents of its container.

    Raises:
        FormatError: a part is missing, not known, or not in its one form.
    """
    missing = REQUIRED - files.keys()
    unknown = sorted(name for name in files if name not in REQUIRED | OPTIONAL and not name.startswith(KEYS))
    if missing or unknown:
        raise FormatError(f"evidence lacks {sorted(missing)} and has the unknown files {unknown[:5]}")
    meta = _read_meta(files[META])
    size = meta["tree_size"]
    return Evidence(
        origin=str(meta["origin"]),
        exported_utc_ns=int(meta["exported_utc_ns"]),
        tree_size=int(size),
        checkpoint=_text(files[CHECKPOINT], CHECKPOINT),
        entries=read_frames(files[ENTRIES], ENTRIES, int(size), max_count=MAX_ENTRIES),
        proofs=tuple(_read_proofs(files[PROOFS], int(size))),
        keys=tuple(_read_key(name, files[name]) for name in sorted(files) if name.startswith(KEYS)),
        figures=files[FIGURES],
        scorecard=files.get(SCORECARD),
        promises=read_frames(files[PROMISES], PROMISES, max_count=MAX_PROMISES) if PROMISES in files else (),
    )


def write_frames(items: Sequence[bytes]) -> bytes:
    """Each item after its length (4 bytes, big-endian)."""
    return b"".join(part for item in items for part in (_LENGTH.pack(len(item)), item))


def frame_spans(data: bytes, what: str) -> Iterator[tuple[int, int]]:
    """(start, end) of every item in `data`, without its length field.

    Raises:
        FormatError: the offset in `what` where an item is cut off or too large.
    """
    offset = 0
    while offset < len(data):
        start = offset + _LENGTH.size
        if start > len(data):
            raise FormatError(f"{what} is cut off at its offset {offset}: a length of {_LENGTH.size} bytes is missing")
        size = _LENGTH.unpack_from(data, offset)[0]
        if size > MAX_MESSAGE_BYTES or start + size > len(data):
            raise FormatError(f"{what} item at its offset {offset} has {size} bytes, {len(data) - start} are left")
        offset = start + size
        yield start, offset


def read_frames(data: bytes, what: str, count: int | None = None, *, max_count: int) -> tuple[bytes, ...]:
    """The items of `write_frames`, `count` of them if it is given.

    Raises:
        FormatError: cut off, too large, too many, or not `count`.
    """
    items: list[bytes] = []
    for start, end in frame_spans(data, what):
        if len(items) == max_count:
            raise FormatError(f"{what} has more than {max_count} items")
        items.append(data[start:end])
    if count is not None and len(items) != count:
        raise FormatError(f"{what} has {len(items)} items, {META} says {count}")
    return tuple(items)


def _read_proofs(data: bytes, count: int) -> Iterator[tuple[bytes, ...]]:
    offset = 0
    for index in range(count):
        hashes = data[offset] if offset < len(data) else MAX_PROOF_HASHES + 1
        end = offset + 1 + hashes * HASH_BYTES
        if hashes > MAX_PROOF_HASHES or end > len(data):
            raise FormatError(f"{PROOFS} is cut off or damaged at its offset {offset}: the proof of entry {index}")
        yield tuple(data[at : at + HASH_BYTES] for at in range(offset + 1, end, HASH_BYTES))
        offset = end
    if offset != len(data):
        raise FormatError(f"{PROOFS} has {len(data) - offset} bytes too many at its offset {offset}")


def _read_meta(data: bytes) -> dict[str, str | int]:
    meta = parse_json(data, META, max_bytes=MAX_MESSAGE_BYTES)
    expected = {"schema", "origin", "exported_utc_ns", "tree_size"}
    if not isinstance(meta, dict) or set(meta) != expected:
        raise FormatError(f"{META} does not have exactly the fields {sorted(expected)}")
    if meta["schema"] != SCHEMA:
        raise FormatError(f"{META} has schema {str(meta['schema'])[:60]!r}, expected {SCHEMA!r}; use a newer holdfast")
    numbers = (meta["exported_utc_ns"], meta["tree_size"])
    if not isinstance(meta["origin"], str) or not all(type(number) is int and number >= 0 for number in numbers):
        raise FormatError(f"{META} has a field of the wrong type; origin is a text, the others whole numbers")
    if meta["tree_size"] > MAX_ENTRIES:
        raise FormatError(f"{META} says {meta['tree_size']} entries, at most {MAX_ENTRIES} are read")
    return meta


def _read_key(name: str, data: bytes) -> ClaimedKey:
    found = _KEY_FILE.fullmatch(name)
    if found is None or found[1] not in ROLES:
        raise FormatError(f"evidence file {name!r} is no key file; expected {KEYS}<role>[-<name>].pub of {ROLES}")
    key = PublicKey.from_pem(_text(data, name))
    if key.to_pem().encode() != data:
        raise FormatError(f"{name} is not in its canonical form")
    return ClaimedKey(found[1], found[2] or "", key)


def _text(data: bytes, what: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{what} is not UTF-8 at its offset {error.start}") from error
