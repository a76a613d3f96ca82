"""The real processes of the demonstration: started, watched, and ended, whatever happens.

Every child gets a log file and a session of its own (Ctrl-C reaches us, and we end them in order). A child that is
needed and gone is an error with the last lines of its log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, StateError
from holdfast.lifecycle import Stop

STOP_TIMEOUT_S = 15.0  # an agent drains its requests and flushes its journal in about a second
POLL_S = 0.05
LOG_TAIL_LINES = 15


class DemoError(HoldfastError):
    """A step of the demonstration did not do what it should."""

    code = "HF-DEMO-001"


@dataclass(slots=True)
class Child:
    name: str
    process: subprocess.Popen[bytes]
    log_path: Path
    log: IO[bytes]

    def check(self) -> None:
        """Raise DemoError if the process is gone."""
        code = self.process.poll()
        if code is not None:
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_TAIL_LINES:]
            raise DemoError(f"{self.name} ended with exit code {code}; the end of its log:\n  " + "\n  ".join(lines))


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the demonstration as Ctrl-C does, so that no child outlives it. Main thread only."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Children:
    """A context manager: every process started in it has ended when it is left."""

    def __init__(self, log_folder: Path, clock: Clock) -> None:
        self._log_folder = log_folder
        self._clock = clock
        self._children: list[Child] = []

    def __enter__(self) -> Children:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop_all()

    def start(self, name: str, arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
        """Start `holdfast ARGUMENTS` in the background."""
        log_path = self._log_folder / f"{name}.log"
        log = log_path.open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "holdfast", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
        )
        child = Child(name, process, log_path, log)
        self._children.append(child)
        return child

    def wait_for_json(self, child: Child, path: Path, timeout_s: float) -> dict[str, object]:
        """Wait for the file that `child` writes when it is ready, and read it."""
        deadline_s = self._clock.monotonic_s() + timeout_s
        pause = Stop(self._clock)
        while self._clock.monotonic_s() < deadline_s:
            child.check()
            if path.exists():
                ready: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
                return ready
            pause.wait(POLL_S)
        raise DemoError(f"{child.name} was not ready after {timeout_s:g} s; see {child.log_path}")

    def check(self) -> None:
        """Raise DemoError if any process is gone."""
        for child in self._children:
            child.check()

    def stop_all(self) -> None:
        """SIGTERM in reverse order of the start, then SIGKILL for the whole group of who did not listen."""
        for child in reversed(self._children):
            if child.process.poll() is None:
                child.process.send_signal(signal.SIGTERM)
        deadline_s = self._clock.monotonic_s() + STOP_TIMEOUT_S
        for child in reversed(self._children):
            try:
                child.process.wait(max(0.1, deadline_s - self._clock.monotonic_s()))
            except subprocess.TimeoutExpired:
                os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()
            child.log.close()
        self._children.clear()

    def release(self) -> list[int]:
        """Leave everything running (`--keep`). Returns the process ids, the last started first."""
        pids = [child.process.pid for child in reversed(self._children)]
        self._children.clear()
        return pids


def run_holdfast(*arguments: str, timeout_s: float = 120.0) -> str:
    """Run one `holdfast` command to its end and return what it printed.

    Raises:
        DemoError: it failed; the message holds what it said.
    """
    command = [sys.executable, "-m", "holdfast", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise DemoError(f"'holdfast {' '.join(arguments[:2])}' failed with exit code {done.returncode}: {said}")
    return done.stdout


def run_holdfast_json(*arguments: str, timeout_s: float = 120.0) -> dict[str, object]:
    """The same with `--json`, parsed."""
    value = json.loads(run_holdfast(*arguments, "--json", timeout_s=timeout_s))
    if not isinstance(value, dict):
        raise StateError(f"'holdfast {arguments[0]}' printed {type(value).__name__}, expected a JSON object")
    return value


def try_holdfast_json(*arguments: str, timeout_s: float = 120.0) -> dict[str, object]:
    """The same for a command whose "no" (exit code 1) is an answer too."""
    command = [sys.executable, "-m", "holdfast", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode not in (0, 1):
        raise DemoError(f"'holdfast {' '.join(arguments[:2])}' failed with exit code {done.returncode}: {done.stderr}")
    value = json.loads(done.stdout)
    return value if isinstance(value, dict) else {}
