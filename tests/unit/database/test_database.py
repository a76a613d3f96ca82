from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from holdfast.errors import StateError
from holdfast_federation.database import SCHEMA_VERSION, Database

SCHEMA = "CREATE TABLE IF NOT EXISTS things (name TEXT PRIMARY KEY, count INTEGER NOT NULL DEFAULT 0);"


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "test.db", [SCHEMA])
    yield database
    database.close()


def names(database: Database) -> list[str]:
    with database.read() as cx:
        return [row["name"] for row in cx.execute("SELECT name FROM things ORDER BY name")]


def test_write_is_kept_by_the_next_opening(database: Database) -> None:
    with database.write() as cx:
        cx.execute("INSERT INTO things (name) VALUES ('a')")
    database.close()

    again = Database(database.path, [SCHEMA])

    assert names(again) == ["a"]
    again.close()


def test_write_is_undone_when_the_block_raises(database: Database) -> None:
    with pytest.raises(ValueError, match="no"), database.write() as cx:  # noqa: PT012
        cx.execute("INSERT INTO things (name) VALUES ('a')")
        raise ValueError("no")

    assert names(database) == []


def test_write_inside_a_write_is_a_bug(database: Database) -> None:
    with database.write(), pytest.raises(RuntimeError, match="transaction"), database.write():
        pass


def test_read_inside_a_write_sees_what_was_written(database: Database) -> None:
    with database.write() as cx:
        cx.execute("INSERT INTO things (name) VALUES ('a')")

        assert names(database) == ["a"]


def test_read_is_one_snapshot_while_others_write(database: Database) -> None:
    with database.read() as cx:
        before = cx.execute("SELECT count(*) FROM things").fetchone()[0]

        def write() -> None:
            with database.write() as other:
                other.execute("INSERT INTO things (name) VALUES ('a')")

        thread = threading.Thread(target=write)
        thread.start()
        thread.join(10)
        after = cx.execute("SELECT count(*) FROM things").fetchone()[0]

    assert (before, after) == (0, 0)
    assert names(database) == ["a"]


def test_threads_lose_no_update(database: Database) -> None:
    with database.write() as cx:
        cx.execute("INSERT INTO things (name) VALUES ('a')")

    def count_up() -> None:
        for _ in range(25):
            with database.write() as cx:
                count = cx.execute("SELECT count FROM things").fetchone()[0]
                cx.execute("UPDATE things SET count = ?", (count + 1,))

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    with database.read() as cx:
        assert cx.execute("SELECT count FROM things").fetchone()[0] == 100


def test_file_is_private_and_its_log_too(database: Database) -> None:
    with database.write() as cx:
        cx.execute("INSERT INTO things (name) VALUES ('a')")

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in database.path.parent.iterdir()}

    assert set(modes.values()) == {0o600}, modes


def test_settings_are_durable(database: Database) -> None:
    with database.read() as cx:
        found = [cx.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")]

    assert found == ["wal", 2, 1]


def test_newer_database_is_refused(database: Database) -> None:
    database.close()
    cx = sqlite3.connect(database.path)
    cx.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    cx.close()

    with pytest.raises(StateError, match=f"schema {SCHEMA_VERSION + 1}.*install the newer"):
        Database(database.path, [SCHEMA])


def test_database_of_another_program_is_refused(tmp_path: Path) -> None:
    cx = sqlite3.connect(tmp_path / "other.db")
    cx.execute("CREATE TABLE t (x)")
    cx.close()

    with pytest.raises(StateError, match="another program"):
        Database(tmp_path / "other.db", [SCHEMA])


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is not a database" * 100)

    with pytest.raises(StateError, match="not a database"):
        Database(tmp_path / "x.db", [SCHEMA])


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="cannot be opened"):
        Database(tmp_path / "missing" / "x.db", [SCHEMA])


def test_full_disk_is_a_state_error_and_nothing_is_kept(database: Database) -> None:
    with database.read() as cx:
        pages = cx.execute("PRAGMA page_count").fetchone()[0]

    with pytest.raises(StateError, match="disk is full"), database.write() as cx:  # noqa: PT012
        cx.execute(f"PRAGMA max_page_count = {pages}")
        cx.execute("INSERT INTO things (name) VALUES (?)", ("x" * 1_000_000,))

    assert names(database) == []


def test_statement_error_is_our_bug_and_stays_one(database: Database) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"), database.write() as cx:
        cx.execute("INSERT INTO missing VALUES (1)")


def test_closed_database_says_so(database: Database) -> None:
    database.close()

    with pytest.raises(StateError, match="closed"), database.read():
        pass


def test_another_process_writes_the_same_file(database: Database) -> None:
    code = (
        "import sys; from pathlib import Path; from holdfast_federation.database import Database\n"
        "d = Database(Path(sys.argv[1]), [sys.argv[2]])\n"
        "with d.write() as cx: cx.execute(\"INSERT INTO things (name) VALUES ('child')\")\n"
        "d.close()"
    )
    environment = {**os.environ, "PYTHONPATH": "runtime:federation"}

    subprocess.run([sys.executable, "-c", code, str(database.path), SCHEMA], check=True, timeout=60, env=environment)

    assert names(database) == ["child"]
