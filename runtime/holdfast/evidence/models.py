"""What the logged manifests say, as far as rounds and figures need it: names, weights, ancestry. Nothing verified."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.evidence.entries import Entry
from holdfast.wire.messages import BundleRecord

WEIGHTS = "weights.bin"


@dataclass(frozen=True, slots=True)
class LoggedModel:
    """One bundle in the log. `weights_sha256` is empty, and texts too, where its manifest does not say them."""

    entry: int
    digest: str
    name: str
    version: str
    weights_sha256: bytes
    run_id: str
    parent_digest: str

    @property
    def label(self) -> str:
        return f"{self.name}@{self.version}" if self.name else self.digest


def logged_models(entries: Sequence[Entry]) -> tuple[LoggedModel, ...]:
    """The bundles in the order of the log; one that is logged twice counts once."""
    found: dict[str, LoggedModel] = {}
    for entry in entries:
        if isinstance(entry.fact, BundleRecord):
            model = _read(entry.index, entry.fact.manifest)
            found.setdefault(model.digest, model)
    return tuple(found.values())


def _read(index: int, manifest: bytes) -> LoggedModel:
    digest = hashlib.sha256(manifest).hexdigest()
    try:
        document: object = json.loads(manifest)
    except (ValueError, RecursionError):
        document = None
    top = _object(document)
    weights = _text(_object(_object(top.get("files")).get(WEIGHTS)).get("sha256"))
    lineage = _object(top.get("lineage"))
    return LoggedModel(
        entry=index,
        digest=digest,
        name=_text(top.get("name")),
        version=_text(top.get("version")),
        weights_sha256=_hash(weights),
        run_id=_text(lineage.get("run_id")),
        parent_digest=_text(lineage.get("parent_digest")),
    )


def _object(value: object) -> dict[str, object]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _hash(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
