"""Assignments: this device shall serve that bundle. Signed, numbered per device, delivered until a newer one is.

Rules: only what a person approved is assigned; number, ledger entry and event are one transaction; a device is handed
the newest assignment per model above the number it names, with every approval there is. Its expiry raises an alarm on
the device and never stops what is served.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable

from holdfast.clock import Clock
from holdfast.errors import TrustError, UsageError
from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import Signer
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import ASSIGNMENT_TYPE, Assignment, AssignmentDelivery, FetchResponse
from holdfast_federation.database import Database
from holdfast_federation.devices.records import Devices
from holdfast_federation.events.outbox import emit
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.registry.models import ModelVersion, Registry

VALID_NS = 90 * 86_400_000_000_000  # 90 days: devices alarm when nobody has looked at a model for a quarter
MAX_DELIVERIES = 64  # of one check-in: the next one brings the rest


def nothing_else(device_id: str) -> Iterable[str]:
    """A coordinator without federated rounds: a device fetches what is assigned to it, and nothing else."""
    return ()


class Rollout:
    """Who shall serve what.

    Args:
        key: the assignment key.
        extra: device id -> digests of bundles that it may fetch besides, such as the base of an open round.
    """

    def __init__(
        self,
        database: Database,
        registry: Registry,
        ledger: Ledger,
        key: Signer,
        clock: Clock,
        extra: Callable[[str], Iterable[str]] = nothing_else,
    ) -> None:
        self._database = database
        self._registry = registry
        self._ledger = ledger
        self._key = key
        self._clock = clock
        self._extra = extra
        self._devices = Devices(database)

    def assign(self, model: str, digest: str, device_ids: Iterable[str]) -> list[Assignment]:
        """Assign an approved bundle to devices, all or none.

        Raises:
            TrustError: the bundle has no standing approval, or a device is not known or revoked.
            UsageError: no device, or the bundle is of another model.
        """
        version = self._registry.get(digest)
        if version.name != model:
            raise UsageError(f"bundle {digest[:16]} is of model {version.name!r}, asked for {model[:100]!r}")
        self._registry.check_approved(digest)
        wanted = list(dict.fromkeys(device_ids))
        if not wanted:
            raise UsageError("no device was named; name devices with --device, or all of them with --all")
        for device_id in wanted:
            if self._devices.get(device_id).is_revoked:
                raise TrustError(f"device {device_id!r} is revoked; nothing can be assigned to it")
        with self._database.write() as cx:
            return [self._assign(cx, version, device_id) for device_id in wanted]

    def deliveries(self, device_id: str, after_number: int) -> tuple[AssignmentDelivery, ...]:
        """The newest assignment of each model above `after_number`, oldest first, with the approvals of its bundle."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT digest, envelope FROM assignments AS mine WHERE device_id = ? AND number > ? AND number ="
                " (SELECT max(number) FROM assignments WHERE device_id = mine.device_id AND model = mine.model)"
                " ORDER BY number LIMIT ?",
                (device_id, min(after_number, 2**62), MAX_DELIVERIES),
            ).fetchall()
        return tuple(
            AssignmentDelivery(from_bytes(Envelope, bytes(row["envelope"])), self._registry.approvals(row["digest"]))
            for row in rows
        )

    def may_fetch(self, device_id: str, blob_sha256: str) -> bool:
        """Whether a blob is of a bundle assigned or offered to the device, or of such a bundle's ancestor."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT DISTINCT digest FROM assignments WHERE device_id = ?", (device_id,)).fetchall()
        return any(blob_sha256 in self._blobs(digest) for digest in [row["digest"] for row in rows]) or any(
            blob_sha256 in self._blobs(digest) for digest in self._extra(device_id)
        )

    def piece(self, blob_sha256: str, offset: int, max_bytes: int) -> FetchResponse:
        """A part of a blob, for a device that may fetch it."""
        return self._registry.piece(blob_sha256, offset, max_bytes)

    def assigned(self) -> dict[str, dict[str, str]]:
        """Device id -> model -> digest of what it shall serve now."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT device_id, model, digest FROM assignments ORDER BY number").fetchall()
        wanted: dict[str, dict[str, str]] = {}
        for row in rows:
            wanted.setdefault(row["device_id"], {})[row["model"]] = row["digest"]
        return wanted

    def _assign(self, cx: sqlite3.Connection, version: ModelVersion, device_id: str) -> Assignment:
        row = cx.execute("SELECT max(number) AS last FROM assignments WHERE device_id = ?", (device_id,)).fetchone()
        now_utc_ns = self._clock.utc_ns()
        assignment = Assignment(
            device_id=device_id,
            number=(row["last"] or 0) + 1,
            model=version.name,
            bundle_digest=version.digest,
            blob_sha256=version.blob_sha256,
            blob_size_bytes=version.blob_size_bytes,
            issued_utc_ns=now_utc_ns,
            expires_utc_ns=now_utc_ns + VALID_NS,
        )
        envelope = to_bytes(sign_envelope(ASSIGNMENT_TYPE, to_bytes(assignment), self._key))
        cx.execute(
            "INSERT INTO assignments (device_id, number, model, digest, envelope, issued_utc_ns)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (device_id, assignment.number, version.name, version.digest, envelope, now_utc_ns),
        )
        self._ledger.record(cx, "assignment", device_id, envelope)
        emit(cx, "assignment", device_id, envelope, self._clock)
        return assignment

    def _blobs(self, digest: str) -> set[str]:
        version = self._registry.find(digest)
        if version is None:
            return set()
        ancestor = self._registry.find(version.ancestor_digest) if version.ancestor_digest else None
        return {version.blob_sha256} | ({ancestor.blob_sha256} if ancestor else set())
