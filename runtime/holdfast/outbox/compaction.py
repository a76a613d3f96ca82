"""What a full journal gives up: a run of records becomes one tombstone that holds their sums. Pure.

The chain stays sound because the tombstone takes the place of exactly these numbers (see `messages.Tombstone`), and
because only records that were never offered to the coordinator are dropped: it can never have seen another record
under the number of a tombstone. Tombstones are merged into later ones, so a journal of any age holds few of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from holdfast.wire.histograms import merge
from holdfast.wire.messages import Histogram, Report, Tombstone

OPERATIONAL, DATA, TOMBSTONE = "operational", "data", "tombstone"
MEASUREMENTS = frozenset({OPERATIONAL, DATA, TOMBSTONE})  # given up first; answers, policies and model events later


@dataclass(frozen=True, slots=True)
class Row:
    """One stored record, without its bytes. A tombstone's `first_seq` is below its `seq`."""

    seq: int
    first_seq: int
    kind: str
    size_bytes: int


def choose_run(rows: Sequence[Row], surplus_bytes: int) -> Sequence[Row]:
    """The records to replace by one tombstone, oldest first; empty when there is nothing left to give up.

    rows: the unsent, never offered records in order, without the newest. Takes measurements as long as a run of them
    is worth it, then whatever is oldest.
    """
    for run in _runs(rows):
        if len(run) > 1 and any(row.kind != TOMBSTONE for row in run):
            return _enough(run, surplus_bytes)
    return _enough(rows, surplus_bytes) if len(rows) > 1 else ()


def make_tombstone(reports: Sequence[Report], last_hash: bytes) -> Tombstone:
    """The exact sums over `reports`, which follow each other in the chain; `last_hash`: what the next record names."""
    outcomes: Counter[str] = Counter()
    latencies: list[Histogram] = []
    for report in reports:
        if report.operational is not None:
            for model in report.operational.models:
                outcomes.update(model.outcomes)
                latencies.append(model.latency_s)
        elif report.tombstone is not None:
            outcomes.update(report.tombstone.outcomes)
            latencies.append(report.tombstone.latency_s)
    first = reports[0]
    return Tombstone(
        first_seq=first.tombstone.first_seq if first.tombstone is not None else first.seq,
        last_seq=reports[-1].seq,
        last_hash=last_hash,
        outcomes=dict(outcomes),
        latency_s=merge(latencies),
    )


def _runs(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    run: list[Row] = []
    for row in rows:
        if row.kind in MEASUREMENTS:
            run.append(row)
            continue
        yield run
        run = []
    yield run


def _enough(run: Sequence[Row], surplus_bytes: int) -> Sequence[Row]:
    freed = 0
    for count, row in enumerate(run, start=1):
        freed += row.size_bytes
        if freed >= surplus_bytes and count > 1:
            return run[:count]
    return run
