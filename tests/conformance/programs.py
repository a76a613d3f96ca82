"""Programs that the conformance tests run: where they are, and what to do if they are not there. Nothing is skipped."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PROTOS = ROOT / "protos"
JAVASCRIPT = HERE / "javascript"
TIMEOUT_S = 120.0  # of one program; generous, because nothing asserts it
ADVICE = "run tests/conformance/install.sh, as `make test-all` does"


def program(name: str) -> str:
    """The path of a program. Fails the test if it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"{name} is not installed: {ADVICE}")
    return found


def python_of(venv: str) -> Path:
    """The interpreter of one of the environments that the script makes. Fails the test if it is not there."""
    python = ROOT / venv / "bin" / "python"
    if not python.exists():
        pytest.fail(f"{venv} is not there: {ADVICE}")
    return python


def output(command: Sequence[str | Path], *, timeout_s: float = TIMEOUT_S) -> str:
    """What a program prints. Fails the test if it ends with an error, or not at all."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=timeout_s, check=False)
    if done.returncode != 0:
        pytest.fail(
            f"{Path(command[0]).name} ended with {done.returncode}:\n{done.stdout[-2_000:]}{done.stderr[-4_000:]}"
        )
    return done.stdout
