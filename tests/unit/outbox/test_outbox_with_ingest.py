"""The journal against the coordinator's real ingest: drops, lost answers and restarts end as one accepted chain."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator_rooms import Rooms, make_rooms
from tests.fakes.journals import make_window
from tests.fakes.raw_device import RawDevice

from holdfast.errors import LinkError
from holdfast.outbox.checkpoints import CheckpointMemory
from holdfast.outbox.journal import Journal
from holdfast.outbox.sender import Recipient, Sender
from holdfast.wire.messages import Acknowledgement, ReportRequest, RoundAnswer


class Line:
    """Straight into the ingest; now and then it, or its answer, is lost."""

    def __init__(self, rooms: Rooms, device_id: str, chance: random.Random) -> None:
        self._rooms = rooms
        self._device_id = device_id
        self._chance = chance

    def report(self, request: ReportRequest) -> Acknowledgement:
        if self._chance.random() < 0.2:
            raise LinkError("lost on the way")
        answer = self._rooms.core.ingest.accept(self._device_id, request.records)
        if self._chance.random() < 0.2:
            raise LinkError("the answer was lost")
        return answer


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    made = make_rooms(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_with_drops_is_accepted_without_a_fork(rooms: Rooms, tmp_path: Path, seed: int) -> None:
    device = rooms.enrolled()
    chance = random.Random(seed)
    line = Line(rooms, device.device_id, chance)
    sent = appended = 0
    for _ in range(6):  # the agent is started again and again
        journal, sender = start(rooms, device, line, tmp_path)
        for _ in range(chance.randrange(80)):
            body = RoundAnswer(bytes(32), "run", 1, True) if chance.random() < 0.1 else make_window(chance.randrange(5))
            appended = journal.append(body)
            sent += body.models[0].latency_s.count if not isinstance(body, RoundAnswer) else 0
            if chance.random() < 0.02:
                sender.step()
        journal.close()
    journal, sender = start(rooms, device, line, tmp_path)
    for _ in range(200):
        sender.step()

    head = rooms.core.ingest.head(device.device_id)
    assert (head.seq, journal.head().has_pending) == (appended, False)
    journal.close()
    with rooms.core.database.read() as cx:
        assert cx.execute("SELECT count(*) FROM forks").fetchone()[0] == 0
        tombstones = cx.execute("SELECT count(*) FROM records WHERE kind = 'tombstone'").fetchone()[0]
        rows = cx.execute("SELECT outcomes FROM windows").fetchall()
    assert tombstones > 0
    assert sum(json.loads(row["outcomes"]).get("ok", 0) for row in rows) == sent


def start(rooms: Rooms, device: RawDevice, line: Line, folder: Path) -> tuple[Journal, Sender]:
    journal = Journal(folder / "outbox.db", device.report_key, device.device_id, 1, FakeClock(), max_bytes=6_000)
    ledger_key = rooms.core.ledger.public_key
    memory = CheckpointMemory(folder, ledger_key)
    recipient = Recipient(ledger_key, device.device_id)
    return journal, Sender(journal, line, recipient, memory, FakeClock(), random.Random(1))
