"""The models folder: bundles by the hash of their bytes, and one small file of slots per model.

    models/schema_version        "1"
    models/sha256/<hash>         a whole bundle, exactly as it was signed; never changed
    models/fetching/<hash>       one that is on its way
    models/slots/<model>.json    current, candidate, previous, phase, counters (see slots.py)

Rules: a slot file is replaced atomically (temp, fsync, rename, fsync folder) and only after the bytes it names are on
the disk, so every prefix of every write leaves the last good state. One process owns the folder. What no slot names is
removed by `collect`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

from holdfast.bundle.documents import Fields, canonical_json, parse_json
from holdfast.bundle.manifest import NAME
from holdfast.errors import BundleError, StateError
from holdfast.models.slots import PHASES, Slot, Slots, move
from holdfast.trust.durable import make_folder, remove_leftovers, sync_folder, write_atomic
from holdfast.wire.limits import MAX_BLOB_BYTES

SCHEMA_VERSION = 1
MAX_SLOTS_BYTES = 16_384  # three slots of 300 bytes and the counters


class ModelStore:
    """The models folder of one device. Not thread-safe: the installer is its only writer."""

    def __init__(self, folder: Path) -> None:
        """Open or make the folder.

        Raises:
            StateError: not writable, or written by a newer holdfast.
        """
        self._blobs, self._fetching, self._slots = folder / "sha256", folder / "fetching", folder / "slots"
        for each in (self._blobs, self._fetching, self._slots):
            make_folder(each)
            remove_leftovers(each)
        _check_version(folder / "schema_version")

    def names(self) -> tuple[str, ...]:
        """The models with slots, sorted."""
        return tuple(sorted(path.stem for path in self._slots.glob("*.json")))

    def slots(self, name: str) -> Slots:
        """The slots of a model; empty ones for a model that was never here.

        Raises:
            StateError: the file is damaged, which no power cut does.
        """
        path = self._slot_path(name)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return Slots(name)
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror or error}") from error
        try:
            slots = _read_slots(data)
        except BundleError as error:
            raise StateError(f"{path} is damaged: {error}; have the model assigned again") from error
        if slots.name != name:
            raise StateError(f"{path} is of model {slots.name!r}; have the model assigned again")
        return slots

    def set_aside(self, name: str) -> None:
        """Rename the slots of a model that cannot be read, for a person to look at; the others go on without them.

        Raises:
            StateError: the folder is not writable.
        """
        path = self._slot_path(name)
        try:
            path.replace(path.with_suffix(".damaged"))
            sync_folder(self._slots)
        except OSError as error:
            raise StateError(f"cannot set {path} aside: {error.strerror or error}") from error

    def move(self, name: str, event: str, slot: Slot | None = None) -> Slots:
        """Carry out one transition durably. Returns the slots after it.

        Raises:
            StateError: it cannot happen now, or cannot be written; the slots are as they were.
        """
        after = move(self.slots(name), event, slot)
        write_atomic(self._slot_path(name), canonical_json({"schema": 1, **dataclasses.asdict(after)}))
        return after

    def number(self) -> int:
        """The newest assignment number that was carried out or refused, over all models; 0 at first."""
        return max((self.slots(name).number for name in self.names()), default=0)

    def has(self, blob_sha256: str) -> bool:
        return (self._blobs / blob_sha256).is_file()

    def path(self, blob_sha256: str) -> Path:
        """Where a bundle container lies, or would lie."""
        return self._blobs / blob_sha256

    def read(self, blob_sha256: str) -> bytes:
        """A whole bundle container, its hash checked again.

        Raises:
            StateError: it is not there or the disk damaged it.
        """
        path = self._blobs / blob_sha256
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BLOB_BYTES + 1)
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != blob_sha256:
            raise StateError(f"{path} was changed on disk: its hash differs")
        return data

    def part_path(self, blob_sha256: str) -> Path:
        """Where a bundle grows while it is fetched."""
        return self._fetching / blob_sha256

    def keep(self, blob_sha256: str) -> None:
        """Move a whole, checked and synced part to its place.

        Raises:
            StateError: it cannot be moved.
        """
        try:
            self.part_path(blob_sha256).rename(self._blobs / blob_sha256)
            sync_folder(self._blobs)
            sync_folder(self._fetching)
        except OSError as error:
            raise StateError(f"cannot keep bundle {blob_sha256[:16]}: {error.strerror or error}") from error

    def collect(self) -> int:
        """Remove what no slot names. Returns how many files went."""
        named = set(self._named())
        gone = [path for folder in (self._blobs, self._fetching) for path in folder.iterdir() if path.name not in named]
        for path in gone:
            path.unlink(missing_ok=True)
        return len(gone)

    def _named(self) -> Iterator[str]:
        for name in self.names():
            slots = self.slots(name)
            for slot in (slots.current, slots.candidate, slots.previous):
                if slot is not None:
                    yield slot.blob_sha256
                    yield slot.ancestor_blob_sha256

    def _slot_path(self, name: str) -> Path:
        if NAME.fullmatch(name) is None:
            raise StateError(
                f"model name {name[:100]!r} is not allowed; use A-Z a-z 0-9 . _ - and 128 characters at most"
            )
        return self._slots / f"{name}.json"


def _check_version(path: Path) -> None:
    try:
        text = path.read_text("ascii") if path.exists() else ""
    except (OSError, ValueError) as error:
        raise StateError(f"cannot read {path}: {error}") from error
    if not text:
        write_atomic(path, f"{SCHEMA_VERSION}\n".encode())
    elif not text.strip().isdigit() or int(text) > SCHEMA_VERSION:
        raise StateError(f"{path} says {text.strip()[:20]!r}, expected {SCHEMA_VERSION}; use a newer holdfast")


def _read_slots(data: bytes) -> Slots:
    keys = {"schema", *(field.name for field in dataclasses.fields(Slots))}
    fields = Fields(parse_json(data, "slots", MAX_SLOTS_BYTES), keys, "slots")
    fields.integer("schema", minimum=1, maximum=1)
    return Slots(
        name=fields.text("name", minimum=1, maximum=128),
        phase=fields.choice("phase", PHASES),
        current=fields.optional("current", _read_slot),
        candidate=fields.optional("candidate", _read_slot),
        previous=fields.optional("previous", _read_slot),
        starts=fields.integer("starts"),
        tries=fields.integer("tries"),
        number=fields.integer("number", maximum=2**64),
    )


def _read_slot(value: object, where: str) -> Slot:
    fields = Fields(value, {field.name for field in dataclasses.fields(Slot)}, where)
    return Slot(
        digest=fields.sha256("digest"),
        version=fields.text("version", maximum=128),
        blob_sha256=fields.sha256("blob_sha256"),
        blob_size_bytes=fields.integer("blob_size_bytes"),
        number=fields.integer("number", maximum=2**64),
        ancestor_blob_sha256=fields.text("ancestor_blob_sha256", maximum=64),
        ancestor_blob_size_bytes=fields.integer("ancestor_blob_size_bytes"),
    )
