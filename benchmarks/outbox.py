"""A record that must survive a power cut: the journal's append, beside a bare durable insert of as many bytes."""

from __future__ import annotations

import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from benchmarks.harness import Figures, Options, Outcome, compare, timed
from tests.fakes.raw_device import window

from holdfast.clock import SystemClock
from holdfast.outbox.journal import Journal
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.convert import to_bytes

APPENDS = 300  # per block


def run(options: Options) -> list[Outcome]:
    body, count = window([0.001, 0.002, 0.004]), options.count(APPENDS)
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:  # on the disk of the checkout, not on tmpfs
        journal = Journal(Path(folder) / "outbox.db", PrivateKey.generate(ED25519), "bench", 1, SystemClock())
        with closing(journal), closing(sqlite3.connect(Path(folder) / "bare.db", isolation_level=None)) as bare:
            bare.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; CREATE TABLE r (b BLOB)")
            data = to_bytes(body)

            def floor() -> Figures:
                return _per_second(timed(lambda: bare.execute("INSERT INTO r VALUES (?)", (data,)), count))

            def append() -> Figures:
                return _per_second(timed(lambda: journal.append(body), count))

            a, b = ("bare SQLite insert, WAL, FULL", floor), ("journal append, signed, chained", append)
            return compare("outbox/append", a, b, options.rounds)


def _per_second(figures: dict[str, float]) -> Figures:
    return {**figures, "appends_per_s": 1e6 / figures["p50_us"]}
