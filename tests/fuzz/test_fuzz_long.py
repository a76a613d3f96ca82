"""Every decoder for a while under a coverage-guided fuzzer, which finds inputs that hypothesis does not think of."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conformance.programs import ROOT, python_of
from tests.fuzz.decoders import DECODERS

SECONDS = int(os.environ.get("FUZZ_SECONDS", "10"))  # of each decoder; an hour finds more
PATIENCE_S = 120.0  # beyond: to start, and to end


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(DECODERS))
def test_fuzzer_breaks_no_decoder(name: str, tmp_path: Path) -> None:
    """The fuzzer lives in an environment of its own; what it runs comes from this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "runtime"), *sys.path])}
    command = [python_of(".venv-fuzz"), "-m", "tests.fuzz.long_run", name, str(SECONDS), tmp_path]

    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS + PATIENCE_S, check=False
    )

    found = {file.name: file.read_bytes() for file in tmp_path.glob("*-*")}
    assert (done.returncode, found) == (0, {}), done.stderr[-4_000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs is not None, done.stderr[-2_000:]
    assert int(runs[1]) > 100
