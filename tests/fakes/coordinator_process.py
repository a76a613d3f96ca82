"""A coordinator as a process of its own, started by its command line on ephemeral ports; it can be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from holdfast.clock import SystemClock

START_TIMEOUT_S = 60.0
PORTS = ("--enrolment-listen", "127.0.0.1:0", "--device-listen", "127.0.0.1:0", "--page-listen", "127.0.0.1:0")


def holdfast(*arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run one `holdfast` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "holdfast", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env=_environment(),
        check=False,
    )


class CoordinatorProcess:
    """`holdfast coordinator run` on one state folder."""

    def __init__(self, state: Path, more: Sequence[str] = (), environment: Mapping[str, str] | None = None) -> None:
        self.state = state
        self._ready = state.parent / f"{state.name}.ready.json"
        self._ready.unlink(missing_ok=True)
        self._log = (state.parent / f"{state.name}.log").open("ab")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "holdfast", "coordinator", "run", str(state)),
                *PORTS,
                *("--ready-file", str(self._ready)),
                *more,
            ],
            stdout=self._log,
            stderr=self._log,
            env={**_environment(), **(environment or {})},
        )
        self.addresses: dict[str, str] = {}

    def wait_ready(self) -> dict[str, str]:
        """The addresses of its listeners."""
        clock, never = SystemClock(), threading.Event()
        deadline_s = clock.monotonic_s() + START_TIMEOUT_S
        while not self._ready.exists():
            if self.process.poll() is not None or clock.monotonic_s() > deadline_s:
                text = Path(self._log.name).read_text(errors="replace")
                self.kill()
                raise AssertionError(f"coordinator did not start: {text[-2_000:]}")
            clock.wait(never, 0.02)
        self.addresses = json.loads(self._ready.read_text())
        return self.addresses

    def kill(self) -> None:
        """kill -9; nothing is flushed."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self._log.close()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._log.close()
        return code


def _environment() -> dict[str, str]:
    # the variable of a person's shell must not reach the coordinator of a test
    return {key: value for key, value in os.environ.items() if not key.startswith("HOLDFAST_")}
