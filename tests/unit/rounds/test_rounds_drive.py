"""The loop of a run: quorum, deadline, refusals, and a kill at every step that changes something."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.round_grid import Countdown, FakeGrid, Killed, Mailbox

from holdfast.errors import RoundError
from holdfast.trust.envelope import sign_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.update.layout import FlatLayout
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import REPORT_TYPE, ClockReading, LedgerEntry, Report, RoundAnswer, RoundRecord
from holdfast_federation.database import Database
from holdfast_federation.devices import schema as devices_schema
from holdfast_federation.events import outbox
from holdfast_federation.events import schema as events_schema
from holdfast_federation.ledger import schema as ledger_schema
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.rounds import schema as rounds_schema
from holdfast_federation.rounds.checkpoint import Checkpoints
from holdfast_federation.rounds.drive import Base, Driver, Outcome, Parts
from holdfast_federation.rounds.grid import Ticket
from holdfast_federation.rounds.runs import RunSpec
from holdfast_federation.rounds.store import RunStore

LAYOUT = FlatLayout.from_shapes([("w", (20, 3)), ("b", (3,))])
BASE = Base(np.zeros(LAYOUT.element_count, dtype="<f4").tobytes(), LAYOUT)
SCHEMAS = (ledger_schema.SCHEMA, devices_schema.SCHEMA, events_schema.SCHEMA, rounds_schema.SCHEMA)
DEVICES = ("a", "b", "c")


class Bench:
    """One coordinator folder; `driver` makes a run worker on it, as often as one is killed."""

    def __init__(self, folder: Path, **changes: object) -> None:
        self.folder = folder
        self.clock = FakeClock()
        self.database = Database(folder / "db", SCHEMAS)
        self.ledger = Ledger(self.database, PrivateKey.generate(ED25519), "t/ledger", self.clock)
        self.store = RunStore(self.database, self.ledger, self.clock)
        self.keys = {device: PrivateKey.generate(ED25519) for device in DEVICES}
        self.mailbox = Mailbox(self.keys, LAYOUT.trainable_element_count)
        self.run_key = PrivateKey.generate(ED25519)
        self.outcomes: list[Outcome] = []
        self.grids = 0
        fields = {"rounds": 2, "quorum": 2, "minimum_devices": 2, "deadline_s": 5.0, "invite_s": 2.0, "join_s": 1.0}
        self.store.create(RunSpec("run-000001", "m", "d" * 64, "p", DEVICES, **(fields | changes)))
        self.refusing: set[str] = set()
        self.silent: set[str] = set()

    def driver(self, countdown: Countdown | None = None) -> Driver:
        checkpoints = Checkpoints(self.folder / "checkpoints")
        store = RunStore(self.database, self.ledger, self.clock)

        def start(ticket: Ticket | None) -> FakeGrid:
            if ticket is None:
                self.grids += 1
            grid = FakeGrid(self.mailbox, self.grids if ticket is None else ticket.run_id)
            if countdown is not None:
                countdown.guard(grid, "push", "pull")
            return grid

        if countdown is not None:
            countdown.guard(checkpoints, "save")
            countdown.guard(store, "move", "open_offer", "mark", "enter_update", "enter_round")
        parts = Parts(
            store=store,
            checkpoints=checkpoints,
            signer=self.run_key,
            report_key=lambda device_id: self.keys[device_id].public_key,
            node_key=lambda device_id: device_id,
            start_grid=start,
            make_candidate=self._candidate,
            clock=self.clock,
        )
        return Driver("run-000001", BASE, parts)

    def answer(self) -> None:
        """Every device answers the open offers, as ingest would enter it."""
        for device_id, key in self.keys.items():
            for envelope in () if device_id in self.silent else self.store.offers(device_id):
                digest = hashlib.sha256(envelope.payload).digest()
                accepted = device_id not in self.refusing
                answer = RoundAnswer(digest, "run-000001", 1, accepted, "" if accepted else "no_policy", "")
                report = Report(device_id, 1, "boot", 1, bytes(32), ClockReading(1, 1), round_answer=answer)
                signed = to_bytes(sign_envelope(REPORT_TYPE, to_bytes(report), key))
                with self.database.write() as cx:
                    outbox.emit(cx, "round_answer", "run-000001", signed)

    def drive(self, countdown: Countdown | None = None) -> str:
        """As a run worker does, with devices that answer the invitation before it looks."""
        driver = self.driver(countdown)
        if self.store.get("run-000001").state == "created":
            driver._advance("created")
        self.answer()
        return driver.drive()

    def records(self) -> list[RoundRecord]:
        found = []
        for position in self.ledger.positions("run-000001", "round"):
            for _, entry in self.ledger.entries(position, position + 1):
                found.append(from_bytes(RoundRecord, from_bytes(LedgerEntry, entry).body))
        return found

    def _candidate(self, spec: RunSpec, outcome: Outcome) -> str:
        self.outcomes.append(outcome)
        return "c" * 64


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_run_ends_with_a_candidate_of_all_that_contributed(bench: Bench):
    assert bench.drive() == "done"

    assert [record.contributed for record in bench.records()] == [DEVICES, DEVICES]
    assert bench.outcomes[0].contributors == DEVICES
    assert bench.store.get("run-000001").candidate_digest == "c" * 64
    assert not (bench.folder / "checkpoints").exists()


def test_a_device_that_vanishes_costs_its_update_and_is_seen(bench: Bench):
    bench.mailbox.offline.add("c")

    assert bench.drive() == "done"

    states = {(p.round, p.device_id): (p.state, p.reason_code) for p in bench.store.parts("run-000001")}
    assert states[1, "c"] == ("vanished", "never_online")
    assert [record.contributed for record in bench.records()] == [("a", "b"), ("a", "b")]


def test_a_device_that_answers_with_a_code_is_seen_with_it(bench: Bench):
    bench.mailbox.codes["b"] = "HF-MODEL-003"

    assert bench.drive() == "done"

    assert ("b", "HF-MODEL-003") in {(p.device_id, p.reason_code) for p in bench.store.parts("run-000001")}


def test_a_round_below_its_quorum_ends_the_run_with_that_reason(bench: Bench):
    bench.mailbox.offline |= {"b", "c"}

    assert bench.drive() == "failed"

    assert "quorum" in bench.store.get("run-000001").reason
    assert [record.outcome for record in bench.records()] == ["failed"]


def test_too_few_acceptances_end_the_run_before_it_starts(bench: Bench):
    bench.refusing |= {"a", "b"}

    assert bench.drive() == "failed"

    assert "1 of 3 devices accepted" in bench.store.get("run-000001").reason
    assert bench.mailbox.pushed == 0


def test_a_device_that_never_answers_is_not_waited_for_longer_than_the_invitation(bench: Bench):
    bench.silent.add("c")

    assert bench.drive() == "done"

    assert {m.device_id: m.answer for m in bench.store.members("run-000001")}["c"] == "invited"


def test_a_run_that_an_operator_stops_ends_and_keeps_that_reason(bench: Bench):
    driver = bench.driver()
    driver._advance("created")
    bench.answer()
    bench.store.move("run-000001", "start")
    bench.store.take_answers("run-000001")
    bench.store.move("run-000001", "fail", reason="stopped by the operator")
    with pytest.raises(RoundError, match="stopped"):
        driver._exchange("train", BASE.weights)

    assert driver.drive() == "failed"
    assert bench.store.get("run-000001").reason == "stopped by the operator"


def test_an_update_signed_by_another_device_is_not_counted(bench: Bench):
    bench.mailbox.keys["c"] = PrivateKey.generate(ED25519)

    assert bench.drive() == "done"

    assert all(record.contributed == ("a", "b") for record in bench.records())


def drive_killed_at_first_pull(bench: Bench) -> None:
    """Orders are out, and checkpointed; no reply was seen."""
    countdown = Countdown(-1)
    driver = bench.driver(countdown)
    driver._advance("created")
    bench.answer()
    grids = driver._parts.start_grid

    def start(ticket: Ticket | None) -> FakeGrid:
        grid = grids(ticket)
        grid.pull = Countdown(1)._guarded(grid.pull)  # type: ignore[attr-defined,method-assign]
        return grid  # type: ignore[return-value]

    driver._parts = dataclasses.replace(driver._parts, start_grid=start)
    with pytest.raises(Killed):
        driver.drive()


def test_an_order_that_was_lost_with_a_killed_coordinator_is_sent_again(bench: Bench):
    bench.mailbox.losing.add("b")
    drive_killed_at_first_pull(bench)

    assert bench.drive() == "done"

    assert [record.contributed for record in bench.records()] == [DEVICES, DEVICES]
    assert bench.mailbox.pushed == 4 * len(DEVICES) + 1  # two rounds, two evaluations, and the one that was lost
    assert len(bench.ledger.positions("run-000001", "offer")) == 4  # under the same offer: it is charged once


def test_an_order_that_came_through_and_is_sent_again_counts_once(bench: Bench):
    bench.mailbox.signed = set()  # the devices answer once, and refuse the second with a code
    bench.mailbox.delayed = True
    drive_killed_at_first_pull(bench)

    assert bench.drive() == "done"

    assert [record.contributed for record in bench.records()] == [DEVICES, DEVICES]
    assert [record.sample_count for record in bench.records()] == [10 + 11 + 12] * 2
    states = {p.state for p in bench.store.parts("run-000001")}
    assert states == {"contributed"}
    assert len(bench.ledger.positions("run-000001", "update")) == 4 * len(DEVICES)


def steps_of_a_run(folder: Path) -> int:
    countdown = Countdown(-1)
    folder.mkdir()
    Bench(folder).drive(countdown)
    return -countdown.left - 1


def test_a_kill_at_any_step_counts_nothing_twice_and_the_run_still_ends(tmp_path: Path):
    steps = steps_of_a_run(tmp_path / "straight")
    assert steps > 100

    for at in range(1, steps + 1, 3):
        folder = tmp_path / str(at)
        folder.mkdir()
        bench = Bench(folder)
        with pytest.raises(Killed):
            bench.drive(Countdown(at))
        state = bench.drive() if bench.store.get("run-000001").state not in ("done", "failed") else "done"

        assert state == "done", f"killed at step {at}: {bench.store.get('run-000001').reason}"
        records = bench.records()
        assert [record.round for record in records] == [1, 2], f"killed at step {at}"
        for record in records:
            parts = [p for p in bench.store.parts("run-000001") if (p.round, p.step) == (record.round, "train")]
            assert record.contributed == tuple(p.device_id for p in parts if p.state == "contributed"), at
        accepted = sum(p.state == "contributed" for p in bench.store.parts("run-000001"))
        assert len(bench.ledger.positions("run-000001", "update")) == accepted, f"killed at step {at}"
        bench.database.close()
