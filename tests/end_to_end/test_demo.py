"""`holdfast demo` as a person runs it: its exit code is the truth, and Ctrl-C leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.fakes.plant import processes_with, wait_for

from holdfast.cli.main import main

TIMEOUT_S = 300.0
CLAIMS = 10
KEYS = {"claims", "figures", "evidence", "elapsed_s", "verdict", "refusal", "scorecard", "tallies", "candidate_digest"}


@contextmanager
def demo(state: Path, *more: str) -> Iterator[subprocess.Popen[str]]:
    """A small demonstration; whatever happens, it and its children have ended afterwards."""
    command = [sys.executable, "-m", "holdfast", "demo", "--state", str(state), "--devices", "1", "--json", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            family = [*descendants(process.pid), process.pid]
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.communicate(timeout=60)
                except subprocess.TimeoutExpired:
                    process.kill()
            for pid in [*family, *processes_with(str(state))]:
                if alive(pid):
                    os.kill(pid, signal.SIGKILL)


def parents() -> dict[int, int]:
    """Process id -> the id of its parent; zombies left out."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue  # it ended while we looked
            if state != "Z":
                found[int(folder.name)] = int(parent)
    return found


def alive(pid: int) -> bool:
    return pid in parents()


def descendants(pid: int) -> set[int]:
    """Children, their children, and so on."""
    known, found, fresh = parents(), set[int](), {pid}
    while fresh:
        fresh = {child for child, parent in known.items() if parent in fresh} - found
        found |= fresh
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "holds"),
    [(("--rounds", "4"), True), (("--rounds", "1", "--lr", "0.001"), False)],
    ids=["enough rounds", "one round that learns nothing"],
)
def test_demo_exit_code_says_whether_every_claim_held(tmp_path: Path, more: tuple[str, ...], holds: bool) -> None:
    state = tmp_path / "demo"
    with demo(state, *more) as process:
        out, err = process.communicate(timeout=TIMEOUT_S)

    said = json.loads(out)
    assert set(said) >= KEYS, err[-2_000:]
    assert len(said["claims"]) == CLAIMS
    failed = [claim["text"] for claim in said["claims"] if not claim["holds"]]
    assert process.returncode == (1 if failed else 0)
    assert (failed == []) is holds, (failed, err[-2_000:])
    assert said["verdict"] == "consistent and authenticated"  # of the evidence, whatever the model learnt
    assert sum(tally["failed"] for tally in said["tallies"].values()) == 0
    assert processes_with(str(state)) == {}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_in_the_middle_of_a_run_ends_every_child(tmp_path: Path, number: signal.Signals) -> None:
    state = tmp_path / "demo"
    with demo(state, "--rounds", "50") as process:
        logs = state / "coordinator" / "flower" / "runs"
        # the second run is the one that trains; by then every kind of child is there
        wait_for(
            lambda: process.poll() is not None or len(list(logs.glob("*.log"))) == 2, "the run to start", TIMEOUT_S
        )
        wait_for(lambda: process.poll() is not None or len(workers(process.pid)) == 2, "the workers", TIMEOUT_S)
        assert process.poll() is None, process.communicate()
        family = descendants(process.pid)
        assert len(family) >= 1 + 1 + 1 + 2 + 2  # coordinator, SuperLink, run worker, two agents, two workers

        process.send_signal(number)
        out, err = process.communicate(timeout=60)

    assert process.returncode == 130, err[-2_000:]
    assert out == ""
    assert "Traceback" not in err
    assert {pid for pid in family if alive(pid)} == set()
    assert processes_with(str(state)) == {}


def workers(pid: int) -> list[int]:
    """The federated workers among the descendants."""
    return [each for each in descendants(pid) if each in processes_with("holdfast.learn.worker")]


def test_a_folder_that_holds_something_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")

    code = main(["demo", "--state", str(tmp_path), "--json"])

    assert code == 2
    assert "is not empty; give --state a new folder" in json.loads(capsys.readouterr().out)["error"]["message"]
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
