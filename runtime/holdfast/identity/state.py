"""The state folder of an agent: its layout, its schema version, and that one process owns it.

    schema_version      "1"
    agent.lock          held by the running agent
    identity/           keys (0600), certificate.pem, authority.pem, device.json, pins.json
    policy/             installed.json; newer policies may be dropped in as *.json
    models/             slots and blobs
    outbox.db           the journal
    samples.db          local samples
    checkpoints/        the last checkpoint of the coordinator's log

A folder written by a newer version is refused and left as it is.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import StateError
from holdfast.trust.durable import make_folder, remove_leftovers, write_atomic

SCHEMA_VERSION = 1
MAX_VERSION_BYTES = 32


@dataclass(frozen=True, slots=True)
class StateFolder:
    """Where everything lies. Make one with `create_state` or `open_state`."""

    path: Path

    @property
    def identity(self) -> Path:
        return self.path / "identity"

    @property
    def policy(self) -> Path:
        return self.path / "policy"

    @property
    def models(self) -> Path:
        return self.path / "models"

    @property
    def outbox(self) -> Path:
        return self.path / "outbox.db"

    @property
    def rounds(self) -> Path:
        return self.path / "rounds"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"


def create_state(path: Path) -> StateFolder:
    """Make a state folder, or open the one that is there.

    Raises:
        StateError: not writable, not empty and not ours, or written by a newer version.
    """
    make_folder(path, 0o700)
    if not (path / "schema_version").exists():
        foreign = [entry.name for entry in _entries(path) if not entry.name.startswith(".")]
        if foreign:
            raise StateError(f"folder {path} holds {foreign[0]!r} and is no state folder; choose an empty one")
        write_atomic(path / "schema_version", f"{SCHEMA_VERSION}\n".encode(), 0o644)
    state = open_state(path)
    for folder in (state.identity, state.policy, state.models, state.checkpoints):
        make_folder(folder, 0o700)
    return state


def open_state(path: Path) -> StateFolder:
    """Open an existing state folder for reading and writing.

    Raises:
        StateError: missing, not a state folder, not writable, or written by a newer version.
    """
    file = path / "schema_version"
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_VERSION_BYTES).strip()
    except FileNotFoundError as error:
        raise StateError(f"{path} is not the state folder of an agent; make one with: holdfast agent enrol") from error
    except OSError as error:
        raise StateError(f"state folder {path} cannot be read: {error.strerror or error}") from error
    if not text.isdigit():
        raise StateError(f"{file} does not hold a version number; restore the folder from a backup")
    if int(text) > SCHEMA_VERSION:
        known = f"this program knows {SCHEMA_VERSION}; update holdfast"
        raise StateError(f"state folder {path} was written by a newer version ({int(text)}), {known}")
    if not os.access(path, os.W_OK | os.X_OK):
        raise StateError(f"state folder {path} is not writable by this user; change its owner, or run as its owner")
    return StateFolder(path)


@contextmanager
def owned(state: StateFolder) -> Iterator[None]:
    """Hold the folder for this process; clears what interrupted writes left behind.

    Raises:
        StateError: another agent runs on it.
    """
    descriptor = _open_lock(state)
    try:
        if not _try_lock(descriptor):
            raise StateError(f"another agent is running on {state.path}; stop it first")
        for folder in (state.path, state.identity, state.policy, state.checkpoints):
            if folder.is_dir():
                remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)


def is_owned(state: StateFolder) -> bool:
    """Whether an agent is running on the folder now."""
    descriptor = _open_lock(state)
    try:
        return not _try_lock(descriptor)
    finally:
        os.close(descriptor)


def _open_lock(state: StateFolder) -> int:
    try:
        return os.open(state.path / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"state folder {state.path} is not writable: {error.strerror or error}") from error


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _entries(path: Path) -> list[Path]:
    try:
        return sorted(path.iterdir())
    except OSError as error:
        raise StateError(f"state folder {path} cannot be read: {error.strerror or error}") from error
