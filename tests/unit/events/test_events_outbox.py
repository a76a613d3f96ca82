from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock

from holdfast_federation.database import Database
from holdfast_federation.events.outbox import Event, emit, read
from holdfast_federation.events.schema import SCHEMA


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "test.db", [SCHEMA])
    yield database
    database.close()


def test_reader_goes_on_where_it_stopped(database: Database) -> None:
    clock = FakeClock()
    with database.write() as cx:
        for index in range(5):
            emit(cx, "kind", f"s{index}", b"body", clock)

    first = read(database, limit=2)
    rest = read(database, after_id=first[-1].id)

    assert [each.subject for each in first + rest] == ["s0", "s1", "s2", "s3", "s4"]
    assert first[0] == Event(first[0].id, "kind", "s0", b"body", clock.utc_ns())


def test_reader_sees_only_the_kinds_it_asked_for(database: Database) -> None:
    with database.write() as cx:
        for kind in ("a", "b", "c", "a"):
            emit(cx, kind, "s", b"")

    assert [each.kind for each in read(database, kinds=("a", "c"))] == ["a", "c", "a"]


def test_event_of_an_undone_transaction_never_happened(database: Database) -> None:
    with pytest.raises(ValueError, match="undone"), database.write() as cx:  # noqa: PT012
        emit(cx, "kind", "s", b"")
        raise ValueError("undone")

    assert read(database) == []


def test_id_is_never_given_twice(database: Database) -> None:
    with database.write() as cx:
        first = emit(cx, "kind", "s", b"")
    with database.write() as cx:
        cx.execute("DELETE FROM events")
    with database.write() as cx:
        second = emit(cx, "kind", "s", b"")

    assert second > first
