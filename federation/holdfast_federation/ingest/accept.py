"""Signed records in: verify, bound, parse, check the chain, store, and only then acknowledge.

Per device the records form a chain: `seq` grows by one and `prev_hash` is the SHA-256 of the payload before. What
arrives twice has its effect once. Another record under a number that is taken, or one whose `prev_hash` is not our
head, is a fork: it is kept beside the first as evidence, and the device has to be looked at. A gap is refused, and the
answer names the head from which to send again. Records before the first refused one are kept.

Verification and parsing happen before the write transaction, so that one slow device does not hold up the others. What
a record says is not judged here: a signed window that makes no sense is still evidence, and the fleet view skips it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.errors import FormatError, HoldfastError, TrustError
from holdfast.trust.envelope import Envelope, verify_envelope
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_RECORDS_PER_REPORT, MAX_REPORT_BYTES
from holdfast.wire.messages import NO_HASH, REPORT_TYPE, Acknowledgement, Histogram, OperationalWindow, Report
from holdfast_federation.database import Database
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.events.outbox import emit
from holdfast_federation.ledger.log import Ledger

logger = logging.getLogger(__name__)

GAP, FORK, SIGNATURE, FORMAT = "gap", "fork", "signature", "format"
MAX_SEQ = 2**62  # far from the end of SQLite's integers; a million a second reach it in 146,000 years
MAX_FORKS_PER_DEVICE = 64  # enough to prove it; a device gone mad must not fill the disk

BODIES = ("operational", "data", "round_answer", "policy_change", "model_event", "tombstone")


@dataclass(frozen=True, slots=True)
class Head:
    """The last record of a device's chain that is on disk here."""

    seq: int = 0
    hash: bytes = NO_HASH


@dataclass(frozen=True, slots=True)
class _Record:
    """A record whose signature holds and whose fields are in bounds."""

    report: Report
    kind: str
    hash: bytes
    envelope: bytes

    @property
    def first_seq(self) -> int:
        tombstone = self.report.tombstone
        return self.report.seq if tombstone is None else tombstone.first_seq

    @property
    def link(self) -> bytes:
        """What the next record names as its predecessor."""
        tombstone = self.report.tombstone
        return self.hash if tombstone is None or tombstone.last_seq != self.report.seq else tombstone.last_hash


class _RefusedError(Exception):
    """Why a record is not taken; never leaves this module."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Ingest:
    """Takes the records of devices."""

    def __init__(self, database: Database, devices: Devices, ledger: Ledger, clock: Clock) -> None:
        self._database = database
        self._devices = devices
        self._ledger = ledger
        self._clock = clock

    def accept(self, device_id: str, envelopes: Sequence[Envelope]) -> Acknowledgement:
        """Store what fits, in order, up to the first record that does not. When this returns it is on disk.

        Args:
            device_id: who the connection belongs to, as its certificate says.

        Raises:
            TrustError: the device is not known.
            FormatError: more records in one call than allowed.
            StateError: the database cannot be written; nothing was acknowledged.
        """
        if len(envelopes) > MAX_RECORDS_PER_REPORT:
            raise FormatError(f"{len(envelopes)} records in one report; send at most {MAX_RECORDS_PER_REPORT}")
        device = self._devices.get(device_id)
        records: list[_Record] = []
        refusal: _RefusedError | None = None
        for envelope in envelopes:
            try:
                records.append(_check(device, envelope))
            except _RefusedError as error:
                refusal = error
                break
        head, chain_refusal = self._store(device_id, records)
        refusal = chain_refusal or refusal
        if refusal is not None:
            fields = {"device_id": device_id, "code": refusal.code, "reason": str(refusal)}
            logger.warning("record refused", extra=fields)
        return Acknowledgement(
            head_seq=head.seq,
            head_hash=head.hash,
            promise=self._ledger.promise(device_id, head.seq, head.hash),
            checkpoint=self._ledger.checkpoint(),
            refused_code=refusal.code if refusal else "",
            refused_reason=str(refusal) if refusal else "",
        )

    def head(self, device_id: str) -> Head:
        """The end of a device's chain here."""
        with self._database.read() as cx:
            return _head(cx, device_id)

    def _store(self, device_id: str, records: Sequence[_Record]) -> tuple[Head, _RefusedError | None]:
        if not records:
            return self.head(device_id), None
        refusal = None
        with self._database.write() as cx:
            head = _head(cx, device_id)
            for record in records:
                try:
                    head = self._add(cx, head, record)
                except _RefusedError as error:
                    # leave the loop, not the transaction: what came before it is kept
                    refusal = error
                    break
            cx.execute(
                "INSERT OR REPLACE INTO chains (device_id, head_seq, head_hash, received_utc_ns) VALUES (?, ?, ?, ?)",
                (device_id, head.seq, head.hash, self._clock.utc_ns()),
            )
        return head, refusal

    def _add(self, cx: sqlite3.Connection, head: Head, record: _Record) -> Head:
        """Store one record, or find that it is known. Returns the head after it."""
        report = record.report
        if report.seq <= head.seq:
            self._require_known(cx, record)
            return head
        if record.first_seq > head.seq + 1:
            raise _RefusedError(GAP, f"record {report.seq} follows {head.seq}; send again from {head.seq + 1}")
        if record.first_seq != head.seq + 1 or report.prev_hash != head.hash:
            self._keep_fork(cx, record)
            raise _RefusedError(FORK, f"record {report.seq} does not continue from record {head.seq} as known here")
        now_ns = self._clock.utc_ns()
        position = self._ledger.record(cx, "report", report.device_id, record.envelope)
        cx.execute(
            "INSERT INTO records (device_id, seq, first_seq, hash, kind, envelope, received_utc_ns, ledger_position)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                report.device_id,
                report.seq,
                record.first_seq,
                record.hash,
                record.kind,
                record.envelope,
                now_ns,
                position,
            ),
        )
        self._spread(cx, record, now_ns)
        return Head(report.seq, record.link)

    def _require_known(self, cx: sqlite3.Connection, record: _Record) -> None:
        report = record.report
        row = cx.execute(
            "SELECT hash FROM records WHERE device_id = ? AND seq = ?", (report.device_id, report.seq)
        ).fetchone()
        if row is not None and bytes(row["hash"]) == record.hash:
            return
        self._keep_fork(cx, record)
        raise _RefusedError(FORK, f"another record with number {report.seq} is known here; both are kept as evidence")

    def _keep_fork(self, cx: sqlite3.Connection, record: _Record) -> None:
        report = record.report
        count = cx.execute("SELECT count(*) FROM forks WHERE device_id = ?", (report.device_id,)).fetchone()[0]
        key = (report.device_id, report.seq, record.hash)
        known = cx.execute("SELECT 1 FROM forks WHERE device_id = ? AND seq = ? AND hash = ?", key).fetchone()
        if known is not None or count >= MAX_FORKS_PER_DEVICE:
            return
        position = self._ledger.record(cx, "fork", report.device_id, record.envelope)
        cx.execute(
            "INSERT INTO forks (device_id, seq, hash, envelope, received_utc_ns, ledger_position)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (*key, record.envelope, self._clock.utc_ns(), position),
        )
        emit(cx, "chain_fork", report.device_id, record.envelope, self._clock)

    def _spread(self, cx: sqlite3.Connection, record: _Record, now_ns: int) -> None:
        """Write what other rooms and the fleet view look for."""
        report = record.report
        if report.operational is not None:
            _put_window(cx, report, report.operational, now_ns)
        elif report.tombstone is not None:
            span = (report.clock.utc_ns, report.clock.utc_ns, now_ns)
            _put_latency(cx, report, ("", "", ""), span, (report.tombstone.outcomes, report.tombstone.latency_s))
        elif report.round_answer is not None:
            answer = report.round_answer
            cx.execute(
                "INSERT INTO answers (device_id, seq, run_id, round, accepted, reason_code, policy_rule,"
                " received_utc_ns) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    report.device_id,
                    report.seq,
                    answer.run_id,
                    answer.round,
                    answer.accepted,
                    answer.reason_code,
                    answer.policy_rule,
                    now_ns,
                ),
            )
            emit(cx, "round_answer", answer.run_id, record.envelope, self._clock)
        elif record.kind in ("policy_change", "model_event"):
            emit(cx, record.kind, report.device_id, record.envelope, self._clock)


def _check(device: DeviceRecord, envelope: Envelope) -> _Record:
    """Signature, bounds, form; not yet the chain."""
    if len(envelope.payload) > MAX_REPORT_BYTES:
        raise _RefusedError(FORMAT, f"record has {len(envelope.payload)} bytes; at most {MAX_REPORT_BYTES} are taken")
    try:
        verified = verify_envelope(envelope, REPORT_TYPE, [device.report_key])
    except TrustError as error:
        raise _RefusedError(SIGNATURE, str(error)) from error
    try:
        report = from_bytes(Report, verified.payload, max_bytes=MAX_REPORT_BYTES)
    except HoldfastError as error:
        raise _RefusedError(FORMAT, str(error)) from error
    if report.device_id != device.device_id:
        raise _RefusedError(FORMAT, f"record names device {report.device_id[:100]!r}, expected {device.device_id!r}")
    if report.key_epoch != device.key_epoch:
        raise _RefusedError(FORMAT, f"record has key epoch {report.key_epoch}, expected {device.key_epoch}")
    if not 1 <= report.seq <= MAX_SEQ or len(report.prev_hash) != len(NO_HASH):
        raise _RefusedError(FORMAT, f"record number {report.seq} or its prev_hash is out of range")
    kinds = [name for name in BODIES if getattr(report, name) is not None]
    if len(kinds) != 1:
        raise _RefusedError(FORMAT, "record has no body that this coordinator knows; update the coordinator")
    tombstone = report.tombstone
    if tombstone is not None and not (
        1 <= tombstone.first_seq <= tombstone.last_seq == report.seq and len(tombstone.last_hash) == len(NO_HASH)
    ):
        raise _RefusedError(FORMAT, "tombstone does not stand for the records up to its own number")
    # only the signatures that were checked are kept: a surplus one could hide anything
    kept = tuple(item for item in envelope.signatures if item.key_id in verified.key_ids)
    stored = to_bytes(Envelope(envelope.payload_type, envelope.payload, kept))
    return _Record(report, kinds[0], hashlib.sha256(envelope.payload).digest(), stored)


def _head(cx: sqlite3.Connection, device_id: str) -> Head:
    row = cx.execute("SELECT head_seq, head_hash FROM chains WHERE device_id = ?", (device_id,)).fetchone()
    return Head() if row is None else Head(row["head_seq"], bytes(row["head_hash"]))


def _put_window(cx: sqlite3.Connection, report: Report, window: OperationalWindow, now_ns: int) -> None:
    span = (_bounded(window.start_utc_ns), _bounded(window.end_utc_ns), now_ns)
    for model in window.models:
        _put_latency(
            cx, report, (model.model, model.version, model.bundle_digest), span, (model.outcomes, model.latency_s)
        )
    for purpose, count in window.bytes_out.items():
        cx.execute(
            "INSERT INTO traffic (device_id, purpose, bytes) VALUES (?, ?, ?)"
            " ON CONFLICT (device_id, purpose) DO UPDATE SET bytes = min(bytes + excluded.bytes, ?)",
            (report.device_id, purpose, min(count, MAX_SEQ), MAX_SEQ),
        )


def _put_latency(
    cx: sqlite3.Connection,
    report: Report,
    model: tuple[str, str, str],
    span: tuple[int, int, int],
    figures: tuple[object, Histogram],
) -> None:
    outcomes, latency = figures
    cx.execute(
        "INSERT INTO windows (device_id, seq, model, version, bundle_digest, start_utc_ns, end_utc_ns,"
        " received_utc_ns, outcomes, latency) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (report.device_id, report.seq, *model, *span, json.dumps(outcomes), to_bytes(latency)),
    )


def _bounded(utc_ns: int) -> int:
    return max(0, min(utc_ns, MAX_SEQ))
