"""Durable files: a reader sees the old bytes or the new ones, wherever the writer is killed."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.errors import StateError
from holdfast.trust.durable import create_atomic, make_folder, remove_leftovers, write_atomic

# Kills the process by SIGKILL right before or after the named call of the os module.
WRITER = """
import os, signal, sys
from pathlib import Path
from holdfast.trust import durable

step, when, path, write = sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]
name, _, nth = step.partition(":")
real, calls = getattr(os, name), [0]

def killing(*args, **kwargs):
    calls[0] += 1
    due = calls[0] == int(nth or 1)
    if due and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = real(*args, **kwargs)
    if due:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(os, name, killing)
getattr(durable, write)(path, b"new" * 50_000)
"""


def _run_killed(path: Path, step: str, when: str, write: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", WRITER, step, when, str(path), write], timeout=60, capture_output=True, check=False
    )
    assert finished.returncode == -9, finished.stderr.decode()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["fchmod", "fsync:1", "replace", "fsync:2"])
def test_write_atomic_killed_in_any_step_leaves_old_or_new(tmp_path: Path, step: str, when: str) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")

    _run_killed(path, step, when, "write_atomic")

    renamed = (step, when) in {("replace", "after"), ("fsync:2", "before"), ("fsync:2", "after")}
    assert path.read_bytes() == (b"new" * 50_000 if renamed else b"old")
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", ["fchmod", "fsync:1", "link", "unlink", "fsync:2"])
def test_create_atomic_killed_in_any_step_leaves_nothing_or_all(tmp_path: Path, step: str, when: str) -> None:
    path = tmp_path / "key"

    _run_killed(path, step, when, "create_atomic")

    linked = step in {"unlink", "fsync:2"} or (step, when) == ("link", "after")
    assert path.exists() is linked
    assert not linked or path.read_bytes() == b"new" * 50_000
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == (["key"] if linked else [])


def test_write_atomic_syncs_the_file_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        steps.append("fsync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "fsync file")
        real_fsync(descriptor)

    def replace(source: str, target: Path) -> None:
        steps.append("rename")
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "state", b"x")

    assert steps == ["fsync file", "rename", "fsync folder"]


def test_write_atomic_failure_keeps_the_old_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state"
    write_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateError, match="No space left"):
        write_atomic(path, b"new")

    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o400])
def test_write_atomic_sets_the_mode(tmp_path: Path, mode: int) -> None:
    write_atomic(tmp_path / "state", b"x", mode)

    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == mode


def test_write_atomic_missing_folder_is_a_state_error(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="No such file"):
        write_atomic(tmp_path / "missing" / "state", b"x")


def test_create_atomic_never_replaces(tmp_path: Path) -> None:
    create_atomic(tmp_path / "key", b"first")

    with pytest.raises(StateError, match="exists"):
        create_atomic(tmp_path / "key", b"second")

    assert (tmp_path / "key").read_bytes() == b"first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_make_folder_makes_parents_and_keeps_what_is_there(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "file").write_bytes(b"x")

    make_folder(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b" / "file").exists()
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700


def test_make_folder_where_a_file_is_raises(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")

    with pytest.raises(StateError, match="cannot make"):
        make_folder(tmp_path / "a")


def test_remove_leftovers_removes_only_leftovers(tmp_path: Path) -> None:
    for name in (".state.abc.unfinished", "state", ".hidden", "x.unfinished"):
        (tmp_path / name).write_bytes(b"")

    assert remove_leftovers(tmp_path) == 1
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".hidden", "state", "x.unfinished"]
