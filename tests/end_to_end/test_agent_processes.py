"""Agent and coordinator as processes: kill -9 of either while records flow loses none and makes none twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.clock import SystemClock

DEADLINE_S = 60.0
HOLDFAST = [sys.executable, "-m", "holdfast"]
ROUNDS = 3


def holdfast(folder: Path, *arguments: str) -> dict[str, object]:
    """One command, its answer as JSON."""
    done = subprocess.run(
        [*HOLDFAST, *arguments, "--json"], cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout} {done.stderr}"
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


def wait_for(condition: Callable[[], bool], what: str) -> None:
    clock, never = SystemClock(), threading.Event()
    until_s = clock.monotonic_s() + DEADLINE_S
    while not condition():
        assert clock.monotonic_s() < until_s, f"not in time: {what}"
        never.wait(0.05)


class Site:
    """The folder with everything, and the processes on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.addresses: dict[str, str] = {}

    def prepare(self) -> None:
        holdfast(self.folder, "site", "init", "north")
        holdfast(self.folder, "site", "sign-policy", "north")
        holdfast(self.folder, "key", "create", "author", "author")
        holdfast(self.folder, "key", "create", "approver", "approver")
        keys = ("--author-key", "author/author.pub", "--approver-key", "approver/approver.pub")
        site_key = ("--site-key", "north=north/site.pub")
        holdfast(
            self.folder, "coordinator", "init", "coordinator", "--trust-domain", "plant7.example", *keys, *site_key
        )
        self.start_coordinator()
        token = str(holdfast(self.folder, "coordinator", "token", "coordinator", "--site", "north")["token"])
        (self.folder / "token").write_text(token)
        enrol = ("agent", "enrol", "device", "--token-file", "token", "--site-key", "north/site.pub")
        holdfast(self.folder, *enrol, *keys)

    def start_coordinator(self) -> None:
        ready = self.folder / "ready.json"
        ready.unlink(missing_ok=True)
        listen = [
            *("--enrolment-listen", self.addresses.get("enrolment", "127.0.0.1:0")),
            *("--device-listen", self.addresses.get("device", "127.0.0.1:0")),
            *("--page-listen", "127.0.0.1:0", "--check-in-s", "1", "--ready-file", str(ready)),
        ]
        self._start("coordinator", "run", "coordinator", *listen)
        wait_for(ready.exists, "coordinator ready")
        self.addresses = json.loads(ready.read_text())

    def start_agent(self) -> None:
        policy = ("--policy", "north/policy-1.json")
        self._start("agent", "run", "device", "--listen", "127.0.0.1:0", "--window-s", "0.1", *policy)

    def _start(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*HOLDFAST, name, *arguments], cwd=self.folder, stdout=log, stderr=log
            )

    def end(self, name: str, number: int) -> None:
        process = self.processes.pop(name)
        os.kill(process.pid, number)
        process.wait(30)

    def records(self) -> tuple[int, int]:
        """(in the chain, not delivered yet), as the device knows."""
        status = holdfast(self.folder, "agent", "status", "device")
        return int(str(status["records"])), int(str(status["records_waiting"]))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    try:
        made.prepare()
        yield made
    finally:
        for name in list(made.processes):
            made.end(name, signal.SIGKILL)


@pytest.mark.slow
def test_kill_of_either_side_loses_no_record(site: Site) -> None:
    site.start_agent()
    for _ in range(ROUNDS):
        before = site.records()[0]
        wait_for(lambda before=before: site.records()[0] > before + 3, "new records")  # type: ignore[misc]
        site.end("coordinator", signal.SIGKILL)
        site.end("agent", signal.SIGKILL)
        site.start_agent()
        wait_for(lambda: site.records()[1] > 3, "records that wait")
        site.start_coordinator()

    wait_for(lambda: site.records()[1] <= 2, "everything delivered")
    site.end("agent", signal.SIGTERM)  # with the last window, which the agent delivers on its way out
    site.end("coordinator", signal.SIGTERM)

    records, waiting = site.records()
    holdfast(site.folder, "evidence", "export", "-o", "all.evidence", "coordinator")
    roots = ("--root", "coordinator/authority/ledger.pub", "--root", "north/site.pub")
    verdict = holdfast(site.folder, "evidence", "verify", "all.evidence", *roots)
    assert waiting == 0
    assert verdict["authenticated"] is True
    figures = verdict["figures"]
    assert isinstance(figures, dict)
    assert figures["entries"] == {"enrolment": 1, "report": records}  # nothing twice, nothing missing, no fork
