"""The rounds' tables: runs and their states, offers to hand out, answers, and who took part.

Every write that has a place in the ledger happens in the same transaction as its entry; writing a part twice (after a
crash) enters it once.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.errors import FormatError, RoundError
from holdfast.trust.envelope import Envelope
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import LedgerEntry, Report, RoundRecord, UpdateRecord
from holdfast_federation.database import Database
from holdfast_federation.events import outbox
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.rounds.offers import SignedOffer
from holdfast_federation.rounds.runs import CREATED, FINAL, INVITED, RunSpec, after
from holdfast_federation.rounds.verify import Finding

ACCEPTED, REFUSED = "accepted", "refused"

# a part whose reply is in is settled: a crash must not make it count twice
_OPEN_PART = (
    "run_id = ? AND round = ? AND step = ? AND device_id = ? AND state NOT IN ('contributed', 'rejected', 'vanished')"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One run as it stands. `event_id`: the answers after this event belong to it."""

    spec: RunSpec
    state: str
    reason: str
    round: int
    candidate_digest: str
    event_id: int
    created_utc_ns: int
    changed_utc_ns: int


@dataclass(frozen=True, slots=True)
class Member:
    """A device of a run, and its answer to the invitation: invited (none yet), accepted or refused."""

    device_id: str
    answer: str
    reason_code: str
    policy_rule: str


@dataclass(frozen=True, slots=True)
class Part:
    """What became of a device in one step of a run."""

    round: int
    step: str
    device_id: str
    state: str
    reason_code: str
    sample_count: int
    norm: float
    metrics: Mapping[str, float]


class RunStore:
    """All runs of a coordinator. Safe for threads and processes."""

    def __init__(self, database: Database, ledger: Ledger, clock: Clock) -> None:
        self._database = database
        self._ledger = ledger
        self._clock = clock

    def create(self, spec: RunSpec) -> None:
        """Enter a new run with its devices invited."""
        now = self._clock.utc_ns()
        with self._database.write() as cx:
            latest = cx.execute("SELECT COALESCE(MAX(id), 0) FROM events").fetchone()[0]
            cx.execute(
                "INSERT INTO rounds_runs (run_id, spec, state, event_id, created_utc_ns, changed_utc_ns)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (spec.run_id, spec.to_json(), CREATED, latest, now, now),
            )
            cx.executemany(
                "INSERT INTO rounds_members (run_id, device_id) VALUES (?, ?)",
                [(spec.run_id, device_id) for device_id in spec.devices],
            )

    def get(self, run_id: str) -> Run:
        """Raises: RoundError: there is no such run."""
        with self._database.read() as cx:
            row = cx.execute("SELECT * FROM rounds_runs WHERE run_id = ?", (run_id,)).fetchone()
        if row is None:
            raise RoundError(f"there is no run {run_id[:80]!r}; see: holdfast rounds list")
        return _run(row)

    def all(self) -> tuple[Run, ...]:
        """Every run, newest first."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT * FROM rounds_runs ORDER BY created_utc_ns DESC, run_id").fetchall()
        return tuple(_run(row) for row in rows)

    def unfinished(self) -> tuple[Run, ...]:
        """Runs that still need a worker, oldest first."""
        return tuple(run for run in reversed(self.all()) if run.state not in FINAL)

    def move(self, run_id: str, event: str, *, reason: str = "", candidate_digest: str = "") -> str:
        """Carry out a transition. Returns the new state. Raises: RoundError: it cannot happen now."""
        with self._database.write() as cx:
            row = cx.execute("SELECT state FROM rounds_runs WHERE run_id = ?", (run_id,)).fetchone()
            if row is None:
                raise RoundError(f"there is no run {run_id[:80]!r}")
            state = after(row["state"], event)
            cx.execute(
                "UPDATE rounds_runs SET state = ?, reason = ?, changed_utc_ns = ?,"
                " candidate_digest = CASE WHEN ? = '' THEN candidate_digest ELSE ? END WHERE run_id = ?",
                (state, reason, self._clock.utc_ns(), candidate_digest, candidate_digest, run_id),
            )
            if state in FINAL:
                cx.execute("UPDATE rounds_offers SET is_open = 0 WHERE run_id = ?", (run_id,))
        return state

    def open_offer(self, signed: SignedOffer, devices: Sequence[str]) -> None:
        """Publish an offer: earlier ones of the run close, it enters the ledger, `devices` count as invited."""
        now = self._clock.utc_ns()
        offer, step = signed.offer, signed.step
        run_id = offer.run_id
        with self._database.write() as cx:
            inserted = cx.execute(
                "INSERT OR IGNORE INTO rounds_offers (offer_sha256, run_id, round, step, envelope, deadline_utc_ns)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (signed.sha256, run_id, offer.round, step, signed.envelope, offer.deadline_utc_ns),
            )
            if inserted.rowcount:
                self._ledger.record(cx, "offer", run_id, signed.envelope)
            cx.execute(
                "UPDATE rounds_offers SET is_open = (offer_sha256 = ?) WHERE run_id = ?", (signed.sha256, run_id)
            )
            cx.execute("UPDATE rounds_runs SET round = ? WHERE run_id = ?", (offer.round, run_id))
            cx.executemany(
                "INSERT OR IGNORE INTO rounds_parts (run_id, round, step, device_id, state, changed_utc_ns)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [(run_id, offer.round, step, device_id, INVITED, now) for device_id in devices],
            )

    def offer(self, sha256: bytes) -> SignedOffer:
        """An offer of before. Raises: RoundError: there is none of that hash."""
        with self._database.read() as cx:
            row = cx.execute("SELECT step, envelope FROM rounds_offers WHERE offer_sha256 = ?", (sha256,)).fetchone()
        if row is None:
            raise RoundError("an offer that a checkpoint names is not in the database")
        return SignedOffer.from_envelope(row["step"], bytes(row["envelope"]))

    def offers(self, device_id: str) -> tuple[Envelope, ...]:
        """The offers that a device's check-in delivers: of running runs it belongs to and has not refused."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT o.envelope FROM rounds_offers o JOIN rounds_members m ON m.run_id = o.run_id"
                " WHERE m.device_id = ? AND m.answer != ? AND o.is_open = 1 AND o.deadline_utc_ns > ?"
                " ORDER BY o.deadline_utc_ns LIMIT 16",
                (device_id, REFUSED, self._clock.utc_ns()),
            ).fetchall()
        return tuple(from_bytes(Envelope, bytes(row["envelope"])) for row in rows)

    def take_answers(self, run_id: str) -> None:
        """Enter the answers that have been ingested since the last time.

        The records were verified at ingest. A device is believed about itself only, and only about an offer of this
        run; of several answers the latest counts, so a site that changes its policy changes the answer.
        """
        run = self.get(run_id)
        events = outbox.read(self._database, run.event_id, ("round_answer",))
        if not events:
            return
        with self._database.write() as cx:
            for event in events:
                if event.subject == run_id:
                    self._enter_answer(cx, run_id, event.body, event.utc_ns)
            cx.execute("UPDATE rounds_runs SET event_id = ? WHERE run_id = ?", (events[-1].id, run_id))

    def members(self, run_id: str) -> tuple[Member, ...]:
        """The devices of a run with their answers, by id."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT * FROM rounds_members WHERE run_id = ? ORDER BY device_id", (run_id,)).fetchall()
        return tuple(Member(row["device_id"], row["answer"], row["reason_code"], row["policy_rule"]) for row in rows)

    def parts(self, run_id: str) -> tuple[Part, ...]:
        """What became of every device in every step, in order."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT * FROM rounds_parts WHERE run_id = ? ORDER BY round, step DESC, device_id", (run_id,)
            ).fetchall()
        return tuple(_part(row) for row in rows)

    def mark(self, signed: SignedOffer, device_id: str, state: str, reason: str = "") -> None:
        """Say what became of a device, unless its reply is in already."""
        with self._database.write() as cx:
            cx.execute(
                f"UPDATE rounds_parts SET state = ?, reason_code = ?, changed_utc_ns = ? WHERE {_OPEN_PART}",
                (state, reason, self._clock.utc_ns(), *_part_key(signed, device_id)),
            )

    def enter_update(self, signed: SignedOffer, device_id: str, state: str, finding: Finding) -> None:
        """Record what was found about a device's reply, with its statement in the ledger. Once per device and step."""
        statement = finding.statement
        values = (
            state,
            finding.reason_code,
            0 if statement is None else statement.sample_count,
            finding.norm,
            json.dumps(dict(finding.metrics), sort_keys=True),
            self._clock.utc_ns(),
        )
        with self._database.write() as cx:
            changed = cx.execute(
                "UPDATE rounds_parts SET state = ?, reason_code = ?, sample_count = ?, norm = ?, metrics = ?,"
                f" changed_utc_ns = ? WHERE {_OPEN_PART}",
                (*values, *_part_key(signed, device_id)),
            )
            if changed.rowcount and finding.envelope:
                record = UpdateRecord(finding.envelope, finding.accepted, finding.reason_code, finding.norm)
                self._ledger.record(cx, "update", signed.offer.run_id, to_bytes(record))

    def enter_round(self, record: RoundRecord) -> None:
        """Put the outcome of a round into the ledger; once."""
        body = to_bytes(record)
        with self._database.write() as cx:
            positions = self._ledger.positions(record.run_id, "round")
            known = any(_body_of(entry) == body for at in positions for _, entry in self._ledger.entries(at, at + 1))
            if not known:
                self._ledger.record(cx, "round", record.run_id, body)

    def node(self, device_id: str) -> tuple[str, int] | None:
        """(public key PEM, node id) of a device that was registered with the SuperLink."""
        with self._database.read() as cx:
            row = cx.execute("SELECT * FROM rounds_nodes WHERE device_id = ?", (device_id,)).fetchone()
        return None if row is None else (row["public_key"], int(row["node_id"]))

    def enter_node(self, device_id: str, public_key: str, node_id: int) -> None:
        """Remember a registration."""
        with self._database.write() as cx:
            cx.execute(
                "INSERT OR REPLACE INTO rounds_nodes (device_id, public_key, node_id) VALUES (?, ?, ?)",
                (device_id, public_key, str(node_id)),
            )

    def offered_bases(self, device_id: str) -> frozenset[str]:
        """Digests of the bundles that open offers to a device start from: it may fetch these."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT r.spec FROM rounds_runs r JOIN rounds_members m ON m.run_id = r.run_id"
                " WHERE m.device_id = ? AND r.state NOT IN ('done', 'failed')",
                (device_id,),
            ).fetchall()
        return frozenset(RunSpec.from_json(row["spec"]).base_digest for row in rows)

    def last_started(self, name: str) -> int | None:
        """When a scheduled run was started last."""
        with self._database.read() as cx:
            row = cx.execute("SELECT last_started_utc_ns FROM rounds_schedule WHERE name = ?", (name,)).fetchone()
        return None if row is None else int(row["last_started_utc_ns"])

    def enter_start(self, name: str, utc_ns: int) -> None:
        """Remember that a scheduled run was started."""
        with self._database.write() as cx:
            cx.execute("INSERT OR REPLACE INTO rounds_schedule VALUES (?, ?)", (name, utc_ns))

    def _enter_answer(self, cx: sqlite3.Connection, run_id: str, body: bytes, utc_ns: int) -> None:
        try:
            report = from_bytes(Report, from_bytes(Envelope, body).payload)
        except FormatError:
            return  # ingest lets none through; a run must not stop for one
        answer = report.round_answer
        if answer is None or answer.run_id != run_id:
            return
        known = cx.execute(
            "SELECT 1 FROM rounds_offers WHERE offer_sha256 = ? AND run_id = ?", (answer.offer_sha256, run_id)
        ).fetchone()
        if known is not None:
            cx.execute(
                "UPDATE rounds_members SET answer = ?, reason_code = ?, policy_rule = ?, answered_utc_ns = ?"
                " WHERE run_id = ? AND device_id = ?",
                (
                    ACCEPTED if answer.accepted else REFUSED,
                    answer.reason_code,
                    answer.policy_rule,
                    utc_ns,
                    run_id,
                    report.device_id,
                ),
            )


def _part_key(signed: SignedOffer, device_id: str) -> tuple[str, int, str, str]:
    return (signed.offer.run_id, signed.offer.round, signed.step, device_id)


def _body_of(entry: bytes) -> bytes:
    return from_bytes(LedgerEntry, entry).body


def _run(row: sqlite3.Row) -> Run:
    return Run(
        spec=RunSpec.from_json(row["spec"]),
        state=row["state"],
        reason=row["reason"],
        round=row["round"],
        candidate_digest=row["candidate_digest"],
        event_id=row["event_id"],
        created_utc_ns=row["created_utc_ns"],
        changed_utc_ns=row["changed_utc_ns"],
    )


def _part(row: sqlite3.Row) -> Part:
    return Part(
        round=row["round"],
        step=row["step"],
        device_id=row["device_id"],
        state=row["state"],
        reason_code=row["reason_code"],
        sample_count=row["sample_count"],
        norm=row["norm"],
        metrics=json.loads(row["metrics"]),
    )
