"""The ledger: append-only, hashed as an RFC 9162 Merkle log, vouched for by signed checkpoints.

`append` runs in the caller's transaction, so that an entry exists exactly when its cause does. A leaf is the
serialised `LedgerEntry` as stored; it is never written again. What is in the log can be proven to anybody who has one
checkpoint; the log does not judge what it holds.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator

from holdfast.clock import Clock
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint
from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import PrivateKey, PublicKey
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import PROMISE_TYPE, InclusionPromise, LedgerEntry
from holdfast_federation.database import Database
from holdfast_federation.ledger import tree

ENTRIES_PER_READ = 256  # rows held at once while an export walks the log


class Ledger:
    """The log of one coordinator.

    Args:
        key: the ledger key (Ed25519); devices pin its public half at enrolment.
        origin: the log's name in its checkpoints, for example `plant7.example/ledger`.
    """

    def __init__(self, database: Database, key: PrivateKey, origin: str, clock: Clock) -> None:
        self._database = database
        self._key = key
        self._clock = clock
        self._lock = threading.Lock()
        self._latest: tuple[int, str] | None = None
        self.origin = origin

    @property
    def public_key(self) -> PublicKey:
        return self._key.public_key

    def append(self, cx: sqlite3.Connection, entry: LedgerEntry) -> int:
        """Add an entry inside the caller's write transaction. Returns its position, from 0."""
        data = to_bytes(entry)
        index = tree.append(cx, data)
        cx.execute(
            "INSERT INTO ledger_entries (position, kind, subject, recorded_utc_ns, entry) VALUES (?, ?, ?, ?, ?)",
            (index, entry.kind, entry.subject, entry.recorded_utc_ns, data),
        )
        return index

    def record(self, cx: sqlite3.Connection, kind: str, subject: str, body: bytes) -> int:
        """`append` with the time of now."""
        return self.append(cx, LedgerEntry(kind, subject, self._clock.utc_ns(), body))

    def size(self) -> int:
        """How many entries the log has."""
        with self._database.read() as cx:
            return tree.size(cx)

    def root(self, size: int) -> bytes:
        """The Merkle root over the first `size` entries."""
        with self._database.read() as cx:
            return tree.root(cx, size)

    def checkpoint(self) -> str:
        """A signed note over what is committed now (C2SP tlog-checkpoint)."""
        with self._database.read() as cx:
            size = tree.size(cx)
            with self._lock:
                if self._latest is not None and self._latest[0] == size:
                    return self._latest[1]
            root = tree.root(cx, size)
        text = sign_checkpoint(Checkpoint(self.origin, size, root), self.origin, self._key)
        with self._lock:
            self._latest = (size, text)
        return text

    def promise(self, device_id: str, head_seq: int, head_hash: bytes) -> Envelope:
        """Signed: the records of this device up to `head_seq` are in the log as it is now. Call after the commit."""
        statement = InclusionPromise(device_id, head_seq, head_hash, self.size())
        return sign_envelope(PROMISE_TYPE, to_bytes(statement), self._key)

    def inclusion_proof(self, index: int, size: int) -> tuple[bytes, ...]:
        """That entry `index` is under the root of `size` entries. Raises TrustError if there is no such entry."""
        with self._database.read() as cx:
            return tree.inclusion_proof(cx, index, size)

    def consistency_proof(self, old: int, new: int) -> tuple[bytes, ...]:
        """That the log of `new` entries begins with the log of `old`. Raises TrustError if there are no such sizes."""
        with self._database.read() as cx:
            return tree.consistency_proof(cx, old, new)

    def entries(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """(position, leaf bytes) from `start` up to, not including, `stop`. Holds no transaction between reads."""
        while start < stop:
            with self._database.read() as cx:
                rows = cx.execute(
                    "SELECT position, entry FROM ledger_entries WHERE position >= ? AND position < ? "
                    "ORDER BY position LIMIT ?",
                    (start, stop, ENTRIES_PER_READ),
                ).fetchall()
            if not rows:
                return
            for row in rows:
                yield int(row["position"]), bytes(row["entry"])
            start = int(rows[-1]["position"]) + 1

    def positions(self, subject: str, kind: str) -> tuple[int, ...]:
        """Where the entries of one kind about one subject stand, in order."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT position FROM ledger_entries WHERE subject = ? AND kind = ? ORDER BY position", (subject, kind)
            ).fetchall()
        return tuple(int(row["position"]) for row in rows)
