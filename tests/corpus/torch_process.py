"""Runs our modules where torch and transformers are. They are never in the environment of the tests themselves."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-corpus" / "bin" / "python"
MAX_SECONDS = 1_800  # the pretrained ones take about six minutes on a core of their own


def in_torch_environment(module: str, arguments: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run a module of this repository and wait for its end; fails the test if the environment is not there."""
    if not PYTHON.exists():
        pytest.fail(f"{PYTHON} is not there; make it with tests/corpus/install.sh (about 1.2 GB)")
    return subprocess.run(
        [str(PYTHON), "-W", "ignore", "-m", module, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}"},
        timeout=MAX_SECONDS,
    )
