"""The journal: one chain, on disk before it returns, bounded, and never two records of one number."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.clock import FakeClock
from tests.fakes.journals import make_window, open_journal, read_chain

from holdfast.errors import ChainError, FormatError, StateError
from holdfast.outbox.journal import KEEP_ACKNOWLEDGED_S, Journal
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import Acknowledgement, DataWindow, ModelEvent, PolicyChange, RoundAnswer, Tombstone

KEY = PrivateKey.generate("ed25519")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def journal(tmp_path: Path, clock: FakeClock) -> Iterator[Journal]:
    opened = open_journal(tmp_path / "outbox.db", KEY, clock)
    yield opened
    opened.close()


def acknowledge(journal: Journal, count: int) -> None:
    reports = journal.pending()
    chain = read_chain(reports[:count], KEY.public_key, *position(journal))
    journal.acknowledge(Acknowledgement(chain[-1].seq, link_of(reports[count - 1])))


def position(journal: Journal) -> tuple[int, bytes]:
    head = journal.head()
    with sqlite3.connect(journal._path) as cx:
        row = cx.execute("SELECT link FROM records WHERE seq = ?", (head.acknowledged_seq,)).fetchone()
    cx.close()
    return head.acknowledged_seq, bytes(row[0]) if row else bytes(32)


def link_of(envelope: object) -> bytes:
    import hashlib

    from holdfast.trust.envelope import Envelope

    assert isinstance(envelope, Envelope)
    return hashlib.sha256(envelope.payload).digest()


def test_records_of_every_kind_form_one_chain(journal: Journal) -> None:
    bodies = [
        make_window(),
        DataWindow(1, 2, "digits", "ab" * 32, 120),
        RoundAnswer(bytes(32), "run", 1, False, "minimum_cohort", "rounds.minimum_cohort = 3"),
        PolicyChange("cd" * 32, 1, b"{}"),
        ModelEvent("digits", "ab" * 32, "activated"),
    ]

    numbers = [journal.append(body) for body in bodies]

    reports = read_chain(journal.pending(), KEY.public_key)
    assert numbers == [1, 2, 3, 4, 5]
    assert reports[0].operational == bodies[0]
    assert reports[2].round_answer == bodies[2]
    assert {report.policy_digest for report in reports} == {"cd" * 32}


def test_a_reopened_journal_goes_on_where_it_was(tmp_path: Path, clock: FakeClock) -> None:
    for _ in range(3):
        journal = open_journal(tmp_path / "outbox.db", KEY, clock)
        journal.append(make_window())
        journal.close()

    journal = open_journal(tmp_path / "outbox.db", KEY, clock)
    reports = read_chain(journal.pending(), KEY.public_key)
    journal.close()

    assert [report.seq for report in reports] == [1, 2, 3]
    assert len({report.boot_id for report in reports}) == 3


def test_two_threads_and_two_connections_make_one_chain(tmp_path: Path, clock: FakeClock) -> None:
    journals = [open_journal(tmp_path / "outbox.db", KEY, clock) for _ in range(2)]
    threads = [
        threading.Thread(target=lambda j=each: [j.append(make_window()) for _ in range(25)])
        for each in (*journals, *journals)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    reports = read_chain(journals[0].pending(), KEY.public_key)
    for journal in journals:
        journal.close()

    assert [report.seq for report in reports] == list(range(1, 101))


def test_an_acknowledged_record_is_not_sent_again(journal: Journal) -> None:
    for _ in range(5):
        journal.append(make_window())

    acknowledge(journal, 3)

    assert [r.seq for r in read_chain(journal.pending(), KEY.public_key, *position(journal))] == [4, 5]
    assert journal.head().acknowledged_seq == 3


def test_a_coordinator_that_went_back_gets_the_records_again(journal: Journal) -> None:
    for _ in range(5):
        journal.append(make_window())
    records = journal.pending()
    acknowledge(journal, 5)

    journal.acknowledge(Acknowledgement(2, link_of(records[1])))

    assert journal.pending() == records[2:]


def test_acknowledged_records_go_after_some_days(journal: Journal, clock: FakeClock) -> None:
    for _ in range(3):
        journal.append(make_window())
    acknowledge(journal, 3)
    clock.advance(KEEP_ACKNOWLEDGED_S + 1)
    journal.append(make_window())
    acknowledge(journal, 1)

    with pytest.raises(ChainError, match="gone from this device"):
        journal.acknowledge(Acknowledgement(0, bytes(32)))


@pytest.mark.parametrize(
    ("seq", "link", "message"),
    [(9, b"\1" * 32, "ends at 2"), (2, b"\1" * 32, "forked"), (1, b"\2" * 32, "forked")],
)
def test_an_acknowledgement_that_does_not_fit_changes_nothing(
    journal: Journal, seq: int, link: bytes, message: str
) -> None:
    journal.append(make_window())
    journal.append(make_window())
    before = journal.pending()

    with pytest.raises(ChainError, match=message):
        journal.acknowledge(Acknowledgement(seq, link))

    assert journal.pending() == before


def test_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path, clock: FakeClock) -> None:
    open_journal(tmp_path / "outbox.db", KEY, clock).close()
    cx = sqlite3.connect(tmp_path / "outbox.db")
    cx.execute("PRAGMA user_version = 99")
    cx.close()

    with pytest.raises(StateError, match="newer version"):
        open_journal(tmp_path / "outbox.db", KEY, clock)

    cx = sqlite3.connect(tmp_path / "outbox.db")
    assert cx.execute("PRAGMA user_version").fetchone() == (99,)
    cx.close()


def test_journal_of_another_device_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    open_journal(tmp_path / "outbox.db", KEY, clock).close()

    with pytest.raises(StateError, match="belongs to device"):
        Journal(tmp_path / "outbox.db", KEY, "d-2", 1, clock)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path, clock: FakeClock) -> None:
    (tmp_path / "outbox.db").write_bytes(os.urandom(5000))

    with pytest.raises(StateError, match="cannot be opened"):
        open_journal(tmp_path / "outbox.db", KEY, clock)


def test_a_record_too_large_is_refused_and_the_chain_goes_on(journal: Journal) -> None:
    with pytest.raises(FormatError):
        journal.append(PolicyChange("cd" * 32, 1, bytes(300_000)))

    assert journal.append(make_window()) == 1


def test_a_full_journal_puts_a_tombstone_with_exact_sums(tmp_path: Path, clock: FakeClock) -> None:
    journal = open_journal(tmp_path / "outbox.db", KEY, clock, max_bytes=8_000)
    for number in range(200):
        journal.append(make_window(requests=number % 7 + 1))
        if number % 50 == 20:
            journal.append(RoundAnswer(bytes(32), f"run-{number}", 1, False, "no_data"))

    reports = read_chain(journal.pending(limit=1000), KEY.public_key)
    journal.close()

    outcomes = sum(window_requests(report.tombstone or report.operational) for report in reports)
    assert outcomes == sum(number % 7 + 1 for number in range(200))
    assert any(report.tombstone for report in reports)
    assert reports[-1].seq == 204
    assert [r.round_answer.run_id for r in reports if r.round_answer] == ["run-20", "run-70", "run-120", "run-170"]


def window_requests(body: object) -> int:
    if isinstance(body, Tombstone):
        assert body.latency_s.count == sum(body.outcomes.values())
        return body.latency_s.count
    models = getattr(body, "models", ())
    return sum(model.latency_s.count for model in models)


def test_what_was_handed_out_is_never_dropped(tmp_path: Path, clock: FakeClock) -> None:
    journal = open_journal(tmp_path / "outbox.db", KEY, clock, max_bytes=8_000)
    for _ in range(10):
        journal.append(make_window())
    offered = journal.pending(limit=5)  # perhaps it arrived, and only the answer was lost
    for _ in range(200):
        journal.append(make_window())

    records = journal.pending(limit=1000)
    journal.close()

    assert records[:5] == offered
    read_chain(records, KEY.public_key)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from("wwwwdapos"), min_size=20, max_size=120), st.integers(0, 10**9))
def test_any_history_leaves_one_whole_chain(tmp_path: Path, steps: list[str], salt: int) -> None:
    path = tmp_path / f"{salt}-{len(list(tmp_path.iterdir()))}.db"
    journal = open_journal(path, KEY, FakeClock(), max_bytes=6_000)
    sent_seq, sent_link, appended = 0, bytes(32), 0
    for step in steps:
        if step == "w":
            appended = journal.append(make_window())
        elif step == "d":
            appended = journal.append(DataWindow(1, 2, "digits", "ab" * 32, 120))
        elif step == "a":
            appended = journal.append(RoundAnswer(bytes(32), "run", 1, True))
        elif step == "p":
            appended = journal.append(PolicyChange("cd" * 32, 1, bytes(500)))
        elif step == "o":
            journal.pending(limit=3)
        elif records := journal.pending(limit=4):
            last = read_chain(records, KEY.public_key, sent_seq, sent_link)[-1]
            sent_link = last.tombstone.last_hash if last.tombstone else link_of(records[-1])
            sent_seq = last.seq
            journal.acknowledge(Acknowledgement(sent_seq, sent_link))

    rest = read_chain(journal.pending(limit=1000), KEY.public_key, sent_seq, sent_link)
    journal.close()

    assert (rest[-1].seq if rest else sent_seq) == appended
