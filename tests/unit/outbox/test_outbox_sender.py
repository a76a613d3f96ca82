"""The sender: everything arrives once, whatever the line or the coordinator does."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator import FakeChain, FakeIngest
from tests.fakes.journals import DEVICE_ID, make_acknowledgement, make_window, open_journal

from holdfast.errors import LinkError, TrustError
from holdfast.lifecycle import Stop
from holdfast.outbox.checkpoints import CheckpointMemory
from holdfast.outbox.journal import Journal
from holdfast.outbox.sender import IDLE_S, LONGEST_PAUSE_S, Recipient, Sender, check_promise
from holdfast.trust.checkpoint import Checkpoint, sign_checkpoint
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import Acknowledgement, ReportRequest

KEY, LEDGER = PrivateKey.generate("ed25519"), PrivateKey.generate("ed25519")


class FakeLink:
    """Delivers to a `FakeIngest`; each fault of the plan strikes once: "lost" before, "unanswered" after arrival."""

    def __init__(self, ingest: FakeIngest, faults: list[str]) -> None:
        self.ingest = ingest
        self.faults = faults

    def report(self, request: ReportRequest) -> Acknowledgement:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "lost":
            raise LinkError("the line is down")
        answer = self.ingest.accept(DEVICE_ID, request)
        if fault == "unanswered":
            raise LinkError("the answer was lost")
        return answer


@pytest.fixture
def ingest() -> FakeIngest:
    made = FakeIngest(LEDGER)
    made.chains[DEVICE_ID] = FakeChain(KEY.public_key)
    return made


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[Journal]:
    opened = open_journal(tmp_path / "outbox.db", KEY, FakeClock())
    yield opened
    opened.close()


def make_sender(journal: Journal, transport: object, tmp_path: Path, clock: FakeClock | None = None) -> Sender:
    memory = CheckpointMemory(tmp_path, LEDGER.public_key)
    recipient = Recipient(LEDGER.public_key, DEVICE_ID)
    return Sender(journal, transport, recipient, memory, clock or FakeClock(), random.Random(5))  # type: ignore[arg-type]  # a fake


def drain(sender: Sender, journal: Journal, steps: int = 200) -> None:
    for _ in range(steps):
        if not journal.head().has_pending:
            return
        sender.step()
    raise AssertionError("the journal was not delivered")


@pytest.mark.parametrize(
    "faults", [[], ["lost"] * 3, ["unanswered"] * 3, ["lost", "unanswered", "", "unanswered", "lost"]]
)
def test_everything_arrives_once_whatever_the_line_does(
    journal: Journal, ingest: FakeIngest, tmp_path: Path, faults: list[str]
) -> None:
    for _ in range(600):
        journal.append(make_window())

    drain(make_sender(journal, FakeLink(ingest, faults), tmp_path), journal)

    chain = ingest.chains[DEVICE_ID]
    assert chain.head_seq == 600
    assert sorted(chain.reports) == list(range(1, 601))
    assert chain.forks == []


def test_a_coordinator_restored_from_a_backup_gets_what_it_lost(
    journal: Journal, ingest: FakeIngest, tmp_path: Path
) -> None:
    sender = make_sender(journal, FakeLink(ingest, []), tmp_path)
    for _ in range(10):
        journal.append(make_window())
    drain(sender, journal)
    chain = ingest.chains[DEVICE_ID]
    chain.head_seq, chain.head_hash = 4, chain.hashes[4]
    chain.hashes = {seq: link for seq, link in chain.hashes.items() if seq <= 4}
    chain.reports = {seq: report for seq, report in chain.reports.items() if seq <= 4}
    # a real restore opens a new epoch of the log; here only the chain went back
    journal.append(make_window())

    (tmp_path / "last").unlink()
    drain(make_sender(journal, FakeLink(ingest, []), tmp_path), journal)

    assert sorted(ingest.chains[DEVICE_ID].reports) == list(range(1, 12))


def test_records_dropped_while_offline_leave_a_chain_the_coordinator_accepts(
    ingest: FakeIngest, tmp_path: Path
) -> None:
    journal = open_journal(tmp_path / "small.db", KEY, FakeClock(), max_bytes=8_000)
    sender = make_sender(journal, FakeLink(ingest, ["unanswered"]), tmp_path)
    for _ in range(5):
        journal.append(make_window())
    sender.step()  # arrives, but the device does not learn it
    for _ in range(300):
        journal.append(make_window())

    drain(sender, journal)
    journal.close()

    chain = ingest.chains[DEVICE_ID]
    assert (chain.head_seq, chain.forks) == (305, [])
    assert any(report.tombstone for report in chain.reports.values())


def test_pauses_grow_are_jittered_and_capped(journal: Journal, ingest: FakeIngest, tmp_path: Path) -> None:
    journal.append(make_window())
    sender = make_sender(journal, FakeLink(ingest, ["lost"] * 500), tmp_path)

    pauses = [sender.step() for _ in range(500)]

    assert max(pauses[:3]) <= 8.0
    assert LONGEST_PAUSE_S / 2 < max(pauses) <= LONGEST_PAUSE_S
    assert len(set(pauses)) == 500
    assert sender.status.failures == 500


def test_a_pause_after_a_failed_line_ends_when_another_call_gets_through(
    journal: Journal, ingest: FakeIngest, tmp_path: Path
) -> None:
    clock = HurryingClock()
    stop = Stop(clock)
    sender = make_sender(journal, FakeLink(ingest, ["lost"] * 20), tmp_path, clock)
    clock.on_wait = sender.line_is_up
    clock.on_delivered = lambda: stop.set() if ingest.chains[DEVICE_ID].head_seq == 1 else None
    journal.append(make_window())
    start_s = clock.monotonic_s()

    sender.run(stop)

    assert ingest.chains[DEVICE_ID].head_seq == 1
    assert clock.monotonic_s() - start_s <= 21 * IDLE_S  # twenty full pauses would be most of an hour


class HurryingClock(FakeClock):
    """Says with every wait that the line is up."""

    on_wait: Callable[[], None] = staticmethod(lambda: None)
    on_delivered: Callable[[], None] = staticmethod(lambda: None)

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.on_wait()
        self.on_delivered()
        return super().wait(event, timeout_s)


class OneAnswer:
    """A coordinator that always says the same."""

    def __init__(self, answer: Acknowledgement) -> None:
        self.answer = answer

    def report(self, request: ReportRequest) -> Acknowledgement:
        return self.answer


def test_retry_after_is_heeded(journal: Journal, tmp_path: Path) -> None:
    seq = journal.append(make_window())
    answer = make_acknowledgement(seq, journal.head().hash, LEDGER, retry_after_ms=7_000)

    assert make_sender(journal, OneAnswer(answer), tmp_path).step() == 7.0


def test_nothing_pending_means_a_short_rest(journal: Journal, ingest: FakeIngest, tmp_path: Path) -> None:
    assert make_sender(journal, FakeLink(ingest, []), tmp_path).step() == IDLE_S
    assert ingest.calls == 0


def test_an_acknowledgement_without_a_true_promise_counts_for_nothing(journal: Journal, tmp_path: Path) -> None:
    seq = journal.append(make_window())
    link = journal.head().hash
    answers = {
        "none": Acknowledgement(seq, link),
        "stolen_certificate_but_not_the_ledger_key": make_acknowledgement(seq, link, KEY),
        "for_another_device": make_acknowledgement(seq, link, LEDGER, device_id="d-2"),
        "for_another_head": Acknowledgement(seq, link, promise=make_acknowledgement(0, bytes(32), LEDGER).promise),
    }
    for answer in answers.values():
        sender = make_sender(journal, OneAnswer(answer), tmp_path)

        assert sender.step() >= 0.0
        assert sender.status.failures == 1
        assert journal.head().has_pending


def test_a_gap_that_sending_again_does_not_close_is_not_a_busy_loop(journal: Journal, tmp_path: Path) -> None:
    journal.append(make_window())
    sender = make_sender(journal, OneAnswer(make_acknowledgement(0, bytes(32), LEDGER, refused_code="gap")), tmp_path)

    sender.step()

    assert sender.status.failures == 1


def test_a_refused_record_is_reported_and_kept(journal: Journal, tmp_path: Path) -> None:
    journal.append(make_window())
    answer = make_acknowledgement(0, bytes(32), LEDGER, refused_code="fork", refused_reason="another record 1")
    sender = make_sender(journal, OneAnswer(answer), tmp_path)

    sender.step()

    assert "fork: another record 1" in sender.status.last_error
    assert journal.head().has_pending


def checkpoint(size: int, root: int = 1, origin: str = "plant7.example/ledger", key: PrivateKey = LEDGER) -> str:
    return sign_checkpoint(Checkpoint(origin, size, bytes([root]) * 32), origin, key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (checkpoint(9), "went back"),
        (checkpoint(10, root=2), "rewritten"),
        (checkpoint(11, origin="other/ledger"), "shows the log"),
        (checkpoint(11, key=KEY), "signatures by"),
    ],
)
def test_a_log_that_does_not_continue_is_refused_also_after_a_restart(tmp_path: Path, text: str, message: str) -> None:
    CheckpointMemory(tmp_path, LEDGER.public_key).take(checkpoint(10))
    memory = CheckpointMemory(tmp_path, LEDGER.public_key)

    with pytest.raises(TrustError, match=message):
        memory.take(text)

    assert memory.last is not None
    assert memory.last.size == 10
    memory.take(checkpoint(11))
    assert memory.last.size == 11


def test_a_true_promise_passes() -> None:
    check_promise(make_acknowledgement(3, b"\1" * 32, LEDGER), Recipient(LEDGER.public_key, DEVICE_ID))
