"""The transactional outbox: an event is written with its cause, and read by id from where a reader stopped.

Kinds written today: `round_answer` (subject run id, body the serialised Envelope of the device's record),
`model_event` and `policy_change` (subject device id, body the Envelope), `chain_fork` (subject device id, body the
Envelope that did not fit), `enrolment` and `revocation` (subject device id). Delivery to webhooks comes later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.clock import Clock, SystemClock
from holdfast_federation.database import Database

MAX_EVENTS_PER_READ = 1_000

_CLOCK = SystemClock()


@dataclass(frozen=True, slots=True)
class Event:
    """id: grows; never given twice."""

    id: int
    kind: str
    subject: str
    body: bytes
    utc_ns: int


def emit(cx: sqlite3.Connection, kind: str, subject: str, body: bytes, clock: Clock = _CLOCK) -> int:
    """Write an event inside the caller's transaction. Returns its id."""
    cursor = cx.execute(
        "INSERT INTO events (kind, subject, body, utc_ns) VALUES (?, ?, ?, ?)", (kind, subject, body, clock.utc_ns())
    )
    return cursor.lastrowid or 0


def read(
    database: Database, after_id: int = 0, kinds: Sequence[str] = (), limit: int = MAX_EVENTS_PER_READ
) -> list[Event]:
    """The next events after `after_id`, oldest first; of all kinds if none is named."""
    marks = ",".join("?" * len(kinds))
    condition = f"AND kind IN ({marks})" if kinds else ""
    with database.read() as cx:
        rows = cx.execute(
            f"SELECT * FROM events WHERE id > ? {condition} ORDER BY id LIMIT ?",
            (after_id, *kinds, min(limit, MAX_EVENTS_PER_READ)),
        ).fetchall()
    return [Event(row["id"], row["kind"], row["subject"], bytes(row["body"]), row["utc_ns"]) for row in rows]
