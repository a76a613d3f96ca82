"""The devices that the coordinator knows, one row each; a row is never deleted.

A revoked device stays revoked: its id and its report key cannot be used again. What a device says about itself
(`active`, `policy_digest`, `agent_version`) is its own unsigned word from the last check-in; evidence comes from its
signed records instead.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.errors import EnrolmentError, TrustError
from holdfast.trust.keys import PublicKey
from holdfast.wire.messages import CheckInRequest
from holdfast_federation.database import Database


@dataclass(frozen=True, slots=True)
class DeviceRecord:
    """active: model name -> bundle digest in service at the last check-in."""

    device_id: str
    site: str
    name: str
    report_key_spki: bytes
    key_epoch: int
    flower_public_key: str
    certificate_sha256: str
    enrolled_utc_ns: int
    revoked_utc_ns: int | None = None
    revoked_reason: str = ""
    last_seen_utc_ns: int | None = None
    active: Mapping[str, str] = field(default_factory=dict)
    policy_digest: str = ""
    agent_version: str = ""

    @property
    def report_key(self) -> PublicKey:
        return PublicKey.from_spki_der(self.report_key_spki)

    @property
    def is_revoked(self) -> bool:
        return self.revoked_utc_ns is not None


class Devices:
    """The table of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, cx: sqlite3.Connection, record: DeviceRecord) -> None:
        """Enter a new device inside the caller's transaction.

        Raises:
            EnrolmentError: its id or its report key is known already.
        """
        taken = cx.execute(
            "SELECT device_id FROM devices WHERE device_id = ? OR report_key_spki = ?",
            (record.device_id, record.report_key_spki),
        ).fetchone()
        if taken is not None:
            raise EnrolmentError(
                f"device id {record.device_id!r} or its report key is known already (as {taken['device_id']!r}); "
                f"enrol with new keys and another name"
            )
        cx.execute(
            "INSERT INTO devices (device_id, site, name, report_key_spki, key_epoch, flower_public_key,"
            " certificate_sha256, enrolled_utc_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                record.device_id,
                record.site,
                record.name,
                record.report_key_spki,
                record.key_epoch,
                record.flower_public_key,
                record.certificate_sha256,
                record.enrolled_utc_ns,
            ),
        )

    def find(self, device_id: str) -> DeviceRecord | None:
        """The device of that id, revoked or not; None if there is none."""
        with self._database.read() as cx:
            row = cx.execute("SELECT * FROM devices WHERE device_id = ?", (device_id,)).fetchone()
        return None if row is None else _record(row)

    def get(self, device_id: str) -> DeviceRecord:
        """The device of that id, revoked or not.

        Raises:
            TrustError: there is none.
        """
        record = self.find(device_id)
        if record is None:
            raise TrustError(f"device {device_id[:100]!r} is not known; see: holdfast coordinator devices")
        return record

    def all(self) -> tuple[DeviceRecord, ...]:
        """Every device, ordered by site and id, the revoked ones included."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT * FROM devices ORDER BY site, device_id").fetchall()
        return tuple(_record(row) for row in rows)

    def revoke(self, cx: sqlite3.Connection, device_id: str, reason: str, utc_ns: int) -> bool:
        """Take a device out for good; from its next call on it is refused. Returns False if it was revoked before.

        Raises:
            TrustError: there is no such device.
        """
        if cx.execute("SELECT 1 FROM devices WHERE device_id = ?", (device_id,)).fetchone() is None:
            raise TrustError(f"device {device_id[:100]!r} is not known; see: holdfast coordinator devices")
        changed = cx.execute(
            "UPDATE devices SET revoked_utc_ns = ?, revoked_reason = ? WHERE device_id = ? AND revoked_utc_ns IS NULL",
            (utc_ns, reason, device_id),
        )
        return changed.rowcount == 1

    def renewed(self, cx: sqlite3.Connection, device_id: str, certificate_sha256: str) -> None:
        """Remember the device's newest certificate."""
        cx.execute("UPDATE devices SET certificate_sha256 = ? WHERE device_id = ?", (certificate_sha256, device_id))

    def enrolled_again(self, cx: sqlite3.Connection, record: DeviceRecord) -> None:
        """Keep what a known device brought when it enrolled anew; its id, site and report key stay."""
        cx.execute(
            "UPDATE devices SET name = ?, flower_public_key = ?, certificate_sha256 = ?, enrolled_utc_ns = ?"
            " WHERE device_id = ?",
            (
                record.name,
                record.flower_public_key,
                record.certificate_sha256,
                record.enrolled_utc_ns,
                record.device_id,
            ),
        )

    def seen(self, device_id: str, request: CheckInRequest, utc_ns: int) -> None:
        """Keep what a device said at its check-in."""
        active = json.dumps(dict(request.active), sort_keys=True)
        with self._database.write() as cx:
            cx.execute(
                "UPDATE devices SET last_seen_utc_ns = ?, active = ?, policy_digest = ?, agent_version = ?"
                " WHERE device_id = ?",
                (utc_ns, active, request.policy_digest, request.agent_version, device_id),
            )


def _record(row: sqlite3.Row) -> DeviceRecord:
    return DeviceRecord(
        device_id=row["device_id"],
        site=row["site"],
        name=row["name"],
        report_key_spki=bytes(row["report_key_spki"]),
        key_epoch=row["key_epoch"],
        flower_public_key=row["flower_public_key"],
        certificate_sha256=row["certificate_sha256"],
        enrolled_utc_ns=row["enrolled_utc_ns"],
        revoked_utc_ns=row["revoked_utc_ns"],
        revoked_reason=row["revoked_reason"],
        last_seen_utc_ns=row["last_seen_utc_ns"],
        active=json.loads(row["active"]),
        policy_digest=row["policy_digest"],
        agent_version=row["agent_version"],
    )
