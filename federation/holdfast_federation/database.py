"""The coordinator's one database file: SQLite in WAL mode, on disk before a write returns.

Every room that stores hands in its `SCHEMA`; all of them share the file, so that a record, its ledger entry and its
event are one transaction. `write` is one BEGIN IMMEDIATE transaction, `read` one consistent snapshot; both may be used
by many threads and by several processes (the run workers open the same file).

Why not a connection per thread: pools of web and gRPC threads come and go, and a connection must be closed by somebody.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from holdfast.errors import StateError

SCHEMA_VERSION = 1  # of the whole file; a newer one is refused, an older one is migrated after a snapshot
APPLICATION_ID = 0x484F4C44  # "HOLD": tells our file from another SQLite file
BUSY_TIMEOUT_S = 10.0  # how long a writer waits for another one
MAX_IDLE_CONNECTIONS = 16  # kept open between uses; more are opened when needed and closed afterwards

# What is wrong with the disk or the file rather than with our statements.
_STATE_ERRORS = {
    sqlite3.SQLITE_BUSY: "another process holds the database; is a second coordinator running?",
    sqlite3.SQLITE_CANTOPEN: "the folder is missing or not writable",
    sqlite3.SQLITE_CORRUPT: "the file is damaged; restore it from a backup",
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk fails",
    sqlite3.SQLITE_NOTADB: "the file is not a database",
    sqlite3.SQLITE_PERM: "no permission",
    sqlite3.SQLITE_READONLY: "the file or its folder is not writable",
}


class Database:
    """One SQLite file with the tables of all `schemas`.

    Args:
        path: the file; made if it is missing, its folder must exist.
        schemas: per room, statements of the form CREATE TABLE/INDEX IF NOT EXISTS.

    Raises:
        StateError: not writable, not a database of ours, or written by a newer version.
    """

    def __init__(self, path: Path, schemas: Sequence[str]) -> None:
        self.path = path
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._local = threading.local()
        self._closed = False
        self._make_file()
        with self._translated(), closing(self._connect()) as cx:
            self._prepare(cx, schemas)

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """One transaction that is on disk when the block ends, or undone if it raises. Blocks do not nest.

        Raises:
            StateError: the disk is full or failing, or another process holds the file for too long.
        """
        if self._current() is not None:
            raise RuntimeError("a write inside another transaction of the same thread would wait for itself")
        with self._transaction("BEGIN IMMEDIATE") as cx:
            yield cx

    @contextmanager
    def read(self) -> Iterator[sqlite3.Connection]:
        """A consistent snapshot; inside a transaction of this thread, that transaction's own view."""
        current = self._current()
        if current is not None:
            yield current
            return
        with self._transaction("BEGIN") as cx:
            yield cx

    def close(self) -> None:
        """Close what is idle; connections in use are closed when their block ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for cx in idle:
            cx.close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        with self._translated():
            cx = self._take()
            self._local.current = cx
            try:
                cx.execute(begin)
                try:
                    yield cx
                    cx.execute("COMMIT")
                except BaseException:
                    if cx.in_transaction:
                        cx.execute("ROLLBACK")
                    raise
            finally:
                self._local.current = None
                self._give_back(cx)

    def _current(self) -> sqlite3.Connection | None:
        return getattr(self._local, "current", None)

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StateError(f"database {self.path} is closed; the coordinator is stopping")
            if self._idle:
                return self._idle.pop()
        return self._connect()

    def _give_back(self, cx: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < MAX_IDLE_CONNECTIONS:
                self._idle.append(cx)
                return
        cx.close()

    def _make_file(self) -> None:
        """An empty file that only its owner reads; SQLite gives its log files the same mode."""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise StateError(f"database {self.path} cannot be opened: {error.strerror}") from error

    def _connect(self) -> sqlite3.Connection:
        cx = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            cx.row_factory = sqlite3.Row
            cx.execute("PRAGMA foreign_keys = ON")
            cx.execute("PRAGMA synchronous = FULL")
        except BaseException:
            cx.close()
            raise
        return cx

    def _prepare(self, cx: sqlite3.Connection, schemas: Sequence[str]) -> None:
        version = cx.execute("PRAGMA user_version").fetchone()[0]
        application = cx.execute("PRAGMA application_id").fetchone()[0]
        tables = cx.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != APPLICATION_ID and tables:
            raise StateError(f"{self.path} is a database of another program; choose another folder")
        if version > SCHEMA_VERSION:
            raise StateError(
                f"database {self.path} has schema {version}, this program knows up to {SCHEMA_VERSION}; "
                f"install the newer holdfast that wrote it"
            )
        if cx.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            cx.execute("PRAGMA journal_mode = WAL")
        statements = "\n".join(schemas)
        cx.executescript(
            f"BEGIN IMMEDIATE;\n{statements}\n"
            f"PRAGMA application_id = {APPLICATION_ID};\nPRAGMA user_version = {SCHEMA_VERSION};\nCOMMIT;"
        )

    @contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn errors of the disk and the file into StateError; errors of our statements stay what they are."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            # the low byte is the primary code, whatever detail stands above it
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code not in _STATE_ERRORS:
                raise
            raise StateError(f"database {self.path}: {error}; {_STATE_ERRORS[code]}") from error
