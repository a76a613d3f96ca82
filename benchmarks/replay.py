"""The generator: drives `replay.c`, which replays framed calls on a core of its own and checks every answer.

It is compiled once, into `benchmarks/.cache`, which git ignores. Before anything is measured each call is made once and
its answer compared with the model's own; after that the generator itself holds every answer against that first one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.process import CLIENT_CORE, started
from benchmarks.serving_calls import Call, check_answers, read_answers, write_calls

SOURCE = Path(__file__).with_name("replay.c")
CACHE = Path(__file__).with_name(".cache")
NO_COUNT = 4_000_000_000


class NoCompilerError(Exception):
    """There is no C compiler."""


class Replay:
    """Calls on one connection. Made by `replaying`."""

    def __init__(self, process: subprocess.Popen[str], calls: Sequence[Call], folder: Path) -> None:
        self._process, self._calls, self._folder = process, calls, folder
        self._answer()

    def closed(self, in_flight: int, *, count: int = NO_COUNT, seconds: float = 0.0) -> dict[str, float]:
        """So many in flight: `answered`, `seconds`, `p50_us`, `p99_us`, `max_us`, `client_cpu_us` (per request)."""
        return self._ask(f"closed {in_flight} {count} {seconds}")

    def open(self, per_second: float, count: int) -> dict[str, float]:
        """One every so often, answered or not; latency counts from the moment it was due."""
        return self._ask(f"open {per_second} {count}")

    def check(self) -> None:
        """Hold the first answer to every call against the model's own."""
        path = self._folder / "answers"
        self._ask(f"dump {path}")
        check_answers(self._calls, read_answers(path))

    def _ask(self, command: str) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        told: dict[str, float] = json.loads(self._process.stdout.readline() or '{"error": "the generator died"}')
        if "error" in told:
            raise RuntimeError(f"replay: {told['error']}")
        return told


@contextmanager
def replaying(
    address: str,
    greeting: bytes,
    calls: Sequence[Call],
    *,
    warm: bool = True,
    cores: int | frozenset[int] = CLIENT_CORE,
) -> Iterator[Replay]:
    """A connection to a server. `warm`: make and check every call once, one after another.

    Raises:
        NoCompilerError: the generator cannot be built here.
    """
    host, _, port = address.rpartition(":")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_calls(folder / "calls", greeting, calls)
        with started([str(built()), host, port, str(folder / "calls")], cores) as process:
            replay = Replay(process, calls, folder)
            if warm:
                replay.closed(1, count=len(calls))
                replay.check()
            yield replay


def built() -> Path:
    """The generator, compiled if it is older than its source."""
    binary = CACHE / "replay"
    if binary.exists() and binary.stat().st_mtime >= SOURCE.stat().st_mtime:
        return binary
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise NoCompilerError("no C compiler (Debian: apt install gcc libc6-dev)")
    CACHE.mkdir(exist_ok=True)
    subprocess.run([compiler, "-O2", "-o", str(binary), str(SOURCE)], check=True)
    return binary
