"""A SuperLink must not outlive a coordinator that was killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

from holdfast.clock import SystemClock

PARENT = """
import os, subprocess, sys, time
module = "holdfast_federation.rounds.tether"
child = subprocess.Popen([sys.executable, "-m", module, str(os.getpid()), "/bin/sleep", "60"])
print(child.pid, flush=True)
time.sleep(60)
"""


def lives(pid: int) -> bool:
    """Whether that process is `sleep` and runs (a zombie does not)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().split()
    except OSError:
        return False
    return fields[1] == "(sleep)" and fields[2] != "Z"


def until(condition) -> bool:
    clock, pause = SystemClock(), threading.Event()
    end_s = clock.monotonic_s() + 20
    while not condition() and clock.monotonic_s() < end_s:
        clock.wait(pause, 0.05)
    return bool(condition())


def test_a_tethered_program_dies_with_its_killed_parent():
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert until(lambda: lives(pid))

        parent.send_signal(signal.SIGKILL)

        assert until(lambda: not lives(pid))


def test_a_program_whose_parent_is_gone_already_does_not_start():
    command = [sys.executable, "-m", "holdfast_federation.rounds.tether", "1", "/bin/echo", "started"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stdout) == (1, "")
