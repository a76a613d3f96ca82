"""What one report costs the coordinator: verify, chain, ledger entry, commit; beside checking its signature alone.

Reports arrive in calls of 32 records, as a device sends them that catches up, and one by one, as it sends them live.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from benchmarks.harness import Block, Figures, Options, Outcome, compare
from tests.fakes.coordinator_rooms import Rooms, make_rooms
from tests.fakes.raw_device import Chain

from holdfast.clock import SystemClock
from holdfast.trust.envelope import Envelope, verify_envelope
from holdfast.wire.messages import REPORT_TYPE

RECORDS = 320  # per block
BATCHES = (1, 32)


def run(options: Options) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with coordinator() as rooms:
        for batch in BATCHES:
            device = rooms.enrolled()
            count = max(batch, options.count(RECORDS) // batch * batch)
            chain = Chain(device.device_id, device.report_key)
            key = device.report_key.public_key
            verify, accept = _blocks(rooms, chain, key, (batch, count))
            a, b = ("signature alone", verify), (f"ingest, {batch} per call", accept)
            outcomes += compare(f"reports/ingest-{batch}", a, b, options.rounds)
    return outcomes


@contextmanager
def coordinator() -> Iterator[Rooms]:
    """A coordinator's rooms on the disk of the checkout, not on tmpfs."""
    with tempfile.TemporaryDirectory(dir=Path(__file__).parent) as folder:
        with closing(make_rooms(Path(folder), SystemClock())) as rooms:
            yield rooms


def _blocks(rooms: Rooms, chain: Chain, key: object, sizes: tuple[int, int]) -> tuple[Block, Block]:
    batch, count = sizes
    made: list[Envelope] = []

    def verify() -> Figures:
        # both blocks of a pair work on the same records, signed outside the measurement
        made[:] = [chain.next() for _ in range(count)]
        start = _clocks_ns()
        for envelope in made:
            verify_envelope(envelope, REPORT_TYPE, [key])  # type: ignore[list-item]  # the device's public key
        return _per_record(start, count)

    def accept() -> Figures:
        start = _clocks_ns()
        for first in range(0, count, batch):
            answer = rooms.core.ingest.accept(chain.device_id, made[first : first + batch])
            if answer.refused_code:
                raise RuntimeError(f"the ingest refused a good record: {answer.refused_reason}")
        return _per_record(start, count)

    return verify, accept


def _clocks_ns() -> tuple[int, int]:
    return time.perf_counter_ns(), time.process_time_ns()


def _per_record(start: tuple[int, int], count: int) -> Figures:
    wall_ns, cpu_ns = (now - before for now, before in zip(_clocks_ns(), start, strict=True))
    return {"mean_us": wall_ns / count / 1e3, "cpu_us": cpu_ns / count / 1e3, "records_per_s": count / (wall_ns / 1e9)}
