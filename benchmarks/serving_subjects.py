"""The servers under measurement, each in a process of its own on the first core: ours as people start it, and peers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.process import SERVER_CORE, started

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Served:
    """A running server."""

    pid: int
    address: str


@contextmanager
def holdfast(
    folder: Path, *flags: str, cores: int | frozenset[int] = SERVER_CORE, python: str = sys.executable
) -> Iterator[Served]:
    """`holdfast serve FOLDER` (or a file), ready."""
    command = [python, "-m", "holdfast", "serve", str(folder), "--listen", "127.0.0.1:0", "--json", *flags]
    with started(command, cores) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("holdfast serve did not become ready; its reason stands above")
        yield Served(process.pid, json.loads(line)["listen"])


@contextmanager
def program(
    module: str,
    folder: Path,
    *,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    words: Sequence[str] = (),
) -> Iterator[Served]:
    """A program of this folder that takes a folder of models and says on its first line where it listens."""
    command = [python, "-m", f"benchmarks.{module}", str(folder), *words]
    with started(command, SERVER_CORE, environment=environment, cwd=ROOT) as process:
        assert process.stdout is not None
        line = process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{module} did not start; its reason stands above")
        yield Served(process.pid, line)
