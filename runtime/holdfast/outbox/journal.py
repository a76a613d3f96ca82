"""The device's chain of signed records on disk, until the coordinator has acknowledged them and some days beyond.

Rules:
- An append is ONE transaction: next number, previous hash, signature, row; when it returns, it is on the disk (WAL with
  synchronous=FULL). The end of the chain is read inside that transaction, so that no crash and no second process can
  make two records of one number.
- `pending` notes durably what it hands out before it does. Only records that were never handed out may be dropped when
  the journal is full; a signed tombstone takes their place (see `compaction`).
- Acknowledged records stay for some days: a coordinator restored from a backup asks for them again.
- An acknowledgement that does not fit the chain changes nothing.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import ChainError, FormatError, StateError
from holdfast.outbox.compaction import TOMBSTONE, Row, choose_run, make_tombstone
from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import Signer
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_MESSAGE_BYTES, MAX_RECORDS_PER_REPORT, MAX_REPORT_BYTES
from holdfast.wire.messages import (
    NO_HASH,
    REPORT_TYPE,
    Acknowledgement,
    ClockReading,
    DataWindow,
    ModelEvent,
    OperationalWindow,
    PolicyChange,
    Report,
    ReportBody,
    RoundAnswer,
    Tombstone,
)

SCHEMA_VERSION = 1
DEFAULT_MAX_BYTES = 67_108_864  # 64 MiB: a month of 60 s windows of a few models
MIN_MAX_BYTES = 4_096
LOW_WATER = 0.75  # a full journal is brought down to this part of its bound, so that tombstones are rare
KEEP_ACKNOWLEDGED_S = 7 * 86_400  # a coordinator is restored from last week's backup at worst
MAX_BATCH_BYTES = MAX_MESSAGE_BYTES // 2  # one call's records, with room for their framing
BUSY_TIMEOUT_S = 10.0
NS_PER_S = 1_000_000_000

FIELD_OF: dict[type[ReportBody], str] = {
    OperationalWindow: "operational",
    DataWindow: "data",
    RoundAnswer: "round_answer",
    PolicyChange: "policy_change",
    ModelEvent: "model_event",
    Tombstone: TOMBSTONE,
}

SCHEMA = (
    # first_seq: below seq for a tombstone; link: what the next record names as prev_hash
    """CREATE TABLE IF NOT EXISTS records (
        seq INTEGER PRIMARY KEY, first_seq INTEGER NOT NULL, link BLOB NOT NULL, kind TEXT NOT NULL,
        utc_ns INTEGER NOT NULL, size_bytes INTEGER NOT NULL, envelope BLOB NOT NULL)""",
    "CREATE UNIQUE INDEX IF NOT EXISTS records_first_seq ON records (first_seq)",
    # offered_seq: the highest number that was ever handed out for sending
    """CREATE TABLE IF NOT EXISTS chain (
        id INTEGER PRIMARY KEY CHECK (id = 1), device_id TEXT NOT NULL, tail_seq INTEGER NOT NULL,
        tail_link BLOB NOT NULL, acknowledged_seq INTEGER NOT NULL, offered_seq INTEGER NOT NULL,
        stored_bytes INTEGER NOT NULL)""",
    # the sum is kept, because adding up a full journal at every append would read all of it
    """CREATE TRIGGER IF NOT EXISTS records_added AFTER INSERT ON records
        BEGIN UPDATE chain SET stored_bytes = stored_bytes + new.size_bytes; END""",
    """CREATE TRIGGER IF NOT EXISTS records_removed AFTER DELETE ON records
        BEGIN UPDATE chain SET stored_bytes = stored_bytes - old.size_bytes; END""",
)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of the chain here, and how far the coordinator has it."""

    seq: int
    hash: bytes
    acknowledged_seq: int

    @property
    def has_pending(self) -> bool:
        return self.acknowledged_seq < self.seq


class Journal:
    """The chain of one device. Thread-safe.

    Args:
        policy_digest: asked at each append for the policy in force ("" before the first).
        max_bytes: bound of the stored records; see `compaction` for what happens at it.

    Raises:
        StateError: the file cannot be opened, is of a newer version, or belongs to another device.
    """

    def __init__(
        self,
        path: Path,
        signer: Signer,
        device_id: str,
        key_epoch: int,
        clock: Clock,
        policy_digest: Callable[[], str] = lambda: "",
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._path = path
        self._signer = signer
        self._device_id = device_id
        self._key_epoch = key_epoch
        self._clock = clock
        self._policy_digest = policy_digest
        self._max_bytes = max(max_bytes, MIN_MAX_BYTES)
        self._boot_id = uuid.uuid4().hex
        self._clock_offset_ns = 0
        self._lock = threading.Lock()
        self._cx = open_database(path)
        try:
            self._prepare()
        except BaseException:
            self._cx.close()
            raise

    def append(self, body: ReportBody) -> int:
        """Sign and store one record. Returns its number; it is on disk then.

        Raises:
            FormatError: the record is larger than a coordinator takes.
            StateError: the disk is full or not writable; nothing was appended.
        """
        with self._transaction():
            tail_seq, tail_link, _, offered_seq = self._chain()
            report = self._report(body, tail_seq + 1, tail_link)
            self._insert(report, tail_seq + 1)
            link = self._link(tail_seq + 1)
            self._cx.execute("UPDATE chain SET tail_seq = ?, tail_link = ?", (tail_seq + 1, link))
            self._keep_bound(offered_seq)
        return tail_seq + 1

    def pending(
        self, limit: int = MAX_RECORDS_PER_REPORT, max_bytes: int = MAX_REPORT_BYTES * 8
    ) -> tuple[Envelope, ...]:
        """The next records to send, in order: at most `limit`, and as many as fit `max_bytes` (one at least)."""
        with self._transaction():
            _, _, acknowledged_seq, offered_seq = self._chain()
            rows = self._cx.execute(
                "SELECT seq, first_seq, envelope FROM records WHERE seq > ? ORDER BY seq LIMIT ?",
                (acknowledged_seq, limit),
            )
            chosen: list[tuple[int, bytes]] = []
            expected, total = acknowledged_seq + 1, 0
            for seq, first_seq, envelope in rows:
                if first_seq != expected:
                    raise ChainError(f"journal {self._path} lacks record {expected}; restore it from a backup")
                total += len(envelope)
                if chosen and total > max_bytes:
                    break
                chosen.append((seq, envelope))
                expected = seq + 1
            if chosen and chosen[-1][0] > offered_seq:
                self._cx.execute("UPDATE chain SET offered_seq = ?", (chosen[-1][0],))
        return tuple(from_bytes(Envelope, envelope) for _, envelope in chosen)

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Note how far the coordinator has the chain; also further back than before, then it is sent again.

        The caller has checked the promise.

        Raises:
            ChainError: the coordinator's head is not in this chain. Nothing is changed.
        """
        seq = acknowledgement.head_seq
        with self._transaction():
            tail_seq, _, acknowledged_seq, _ = self._chain()
            if seq > tail_seq:
                raise ChainError(
                    f"the coordinator has record {seq} of this device, the journal ends at {tail_seq}; was the state "
                    "folder restored from an old copy? Enrol the device again in a new folder"
                )
            if seq == acknowledged_seq == 0 and acknowledgement.head_hash == NO_HASH:
                return
            if seq < acknowledged_seq and not self._can_resend(seq):
                gone = f"records before {self._oldest()} are gone from this device"
                raise ChainError(f"the coordinator went back to record {seq}; {gone}")
            link = self._known_link(seq)
            if (link is None and seq > acknowledged_seq) or link not in (None, acknowledgement.head_hash):
                raise ChainError(f"the coordinator holds another record {seq} than this device; its chain was forked")
            self._cx.execute("UPDATE chain SET acknowledged_seq = ?", (seq,))
            oldest_ns = self._clock.utc_ns() - KEEP_ACKNOWLEDGED_S * NS_PER_S
            self._cx.execute("DELETE FROM records WHERE seq < ? AND utc_ns < ?", (seq, oldest_ns))

    def head(self) -> Head:
        """Where the chain ends and how far it is acknowledged."""
        with self._lock:
            tail_seq, tail_link, acknowledged_seq, _ = self._chain()
        return Head(tail_seq, tail_link, acknowledged_seq)

    def note_clock_offset(self, offset_ns: int) -> None:
        """Server time minus device time, from the last contact; goes into the records from now on."""
        self._clock_offset_ns = offset_ns

    def close(self) -> None:
        with self._lock:
            self._cx.close()

    def _prepare(self) -> None:
        with self._transaction():
            found = self._cx.execute("PRAGMA user_version").fetchone()[0]
            if found > SCHEMA_VERSION:
                known = f"this program knows {SCHEMA_VERSION}; update holdfast"
                raise StateError(f"journal {self._path} was written by a newer version ({found}), {known}")
            for statement in SCHEMA:
                self._cx.execute(statement)
            self._cx.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            self._cx.execute("INSERT OR IGNORE INTO chain VALUES (1, ?, 0, ?, 0, 0, 0)", (self._device_id, NO_HASH))
            owner = self._cx.execute("SELECT device_id FROM chain").fetchone()[0]
            if owner != self._device_id:
                raise StateError(f"journal {self._path} belongs to device {owner!r}, not to {self._device_id!r}")

    def _report(self, body: ReportBody, seq: int, prev_hash: bytes) -> Report:
        clock = ClockReading(self._clock.utc_ns(), round(self._clock.monotonic_s() * NS_PER_S), self._clock_offset_ns)
        empty = Report(self._device_id, self._key_epoch, self._boot_id, seq, prev_hash, clock, self._policy_digest())
        return replace(empty, **{FIELD_OF[type(body)]: body})  # type: ignore[arg-type]  # the field fits its body

    def _insert(self, report: Report, first_seq: int) -> None:
        payload = to_bytes(report)
        if len(payload) > MAX_REPORT_BYTES:
            raise FormatError(f"record has {len(payload)} bytes; at most {MAX_REPORT_BYTES} are taken")
        tombstone = report.tombstone
        link = hashlib.sha256(payload).digest() if tombstone is None else tombstone.last_hash
        envelope = to_bytes(sign_envelope(REPORT_TYPE, payload, self._signer))
        kind = next(name for name in FIELD_OF.values() if getattr(report, name) is not None)
        self._cx.execute(
            "INSERT INTO records (seq, first_seq, link, kind, utc_ns, size_bytes, envelope)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (report.seq, first_seq, link, kind, report.clock.utc_ns, len(envelope), envelope),
        )

    def _keep_bound(self, offered_seq: int) -> None:
        """Bring the stored bytes under the bound: acknowledged records go first, then tombstones take places."""
        total = self._total_bytes()
        if total <= self._max_bytes:
            return
        target = int(self._max_bytes * LOW_WATER)
        _, _, acknowledged_seq, _ = self._chain()
        for seq, size_bytes in self._cx.execute(
            "SELECT seq, size_bytes FROM records WHERE seq < ? ORDER BY seq", (acknowledged_seq,)
        ).fetchall():
            if total <= target:
                return
            self._cx.execute("DELETE FROM records WHERE seq = ?", (seq,))
            total -= size_bytes
        while total > target:
            freed = self._drop_run(max(offered_seq, acknowledged_seq), total - target)
            if freed <= 0:
                return
            total -= freed

    def _drop_run(self, after_seq: int, surplus_bytes: int) -> int:
        """Replace one run of records by a tombstone. Returns the bytes gained, 0 if there is nothing to drop."""
        found = self._cx.execute(
            "SELECT seq, first_seq, kind, size_bytes FROM records WHERE first_seq > ? ORDER BY seq", (after_seq,)
        ).fetchall()
        run = choose_run([Row(*row) for row in found][:-1], surplus_bytes)
        if not run:
            return 0
        before = self._total_bytes()
        span = (run[0].first_seq, run[-1].seq)
        envelopes = self._cx.execute(
            "SELECT envelope FROM records WHERE seq BETWEEN ? AND ? ORDER BY seq", span
        ).fetchall()
        reports = [from_bytes(Report, from_bytes(Envelope, row[0]).payload) for row in envelopes]
        tombstone = make_tombstone(reports, self._link(run[-1].seq))
        self._cx.execute("DELETE FROM records WHERE seq BETWEEN ? AND ?", span)
        self._insert(self._report(tombstone, tombstone.last_seq, reports[0].prev_hash), tombstone.first_seq)
        return before - self._total_bytes()

    def _can_resend(self, head_seq: int) -> bool:
        """Whether every record after `head_seq` is still here."""
        return self._cx.execute("SELECT 1 FROM records WHERE first_seq = ?", (head_seq + 1,)).fetchone() is not None

    def _oldest(self) -> int:
        return int(self._cx.execute("SELECT min(first_seq) FROM records").fetchone()[0] or 0)

    def _total_bytes(self) -> int:
        return int(self._cx.execute("SELECT stored_bytes FROM chain").fetchone()[0])

    def _known_link(self, seq: int) -> bytes | None:
        row = self._cx.execute("SELECT link FROM records WHERE seq = ?", (seq,)).fetchone()
        return None if row is None else bytes(row[0])

    def _link(self, seq: int) -> bytes:
        return bytes(self._cx.execute("SELECT link FROM records WHERE seq = ?", (seq,)).fetchone()[0])

    def _chain(self) -> tuple[int, bytes, int, int]:
        row = self._cx.execute("SELECT tail_seq, tail_link, acknowledged_seq, offered_seq FROM chain").fetchone()
        return row[0], bytes(row[1]), row[2], row[3]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            try:
                self._cx.execute("BEGIN IMMEDIATE")
                try:
                    yield
                except BaseException:
                    self._cx.execute("ROLLBACK")
                    raise
                self._cx.execute("COMMIT")
            except sqlite3.Error as error:
                if self._cx.in_transaction:
                    self._cx.execute("ROLLBACK")
                raise StateError(f"journal {self._path} cannot be written: {error}; is the disk full?") from error


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that commits only what is on the disk.

    Raises:
        StateError: it cannot be opened, or is no journal.
    """
    try:
        cx = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            path.chmod(0o600)
            cx.execute("PRAGMA journal_mode = WAL")
            cx.execute("PRAGMA synchronous = FULL")
        except BaseException:
            cx.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise StateError(f"journal {path} cannot be opened: {error}; restore it from a backup") from error
    return cx


def read_head(path: Path) -> Head:
    """Where the chain in a journal file ends, without opening it for writing; an empty chain if there is no file.

    Raises:
        StateError: it cannot be read.
    """
    if not path.exists():
        return Head(0, NO_HASH, 0)
    try:
        cx = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        try:
            row = cx.execute("SELECT tail_seq, tail_link, acknowledged_seq FROM chain").fetchone()
        finally:
            cx.close()
    except sqlite3.Error as error:
        raise StateError(f"journal {path} cannot be read: {error}") from error
    return Head(row[0], bytes(row[1]), row[2])
