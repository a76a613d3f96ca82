"""Cold start: fresh processes, each importing ONNX Runtime, loading the model and running it once and again.

The files are in the page cache after the first process, and are not evicted: the figures say so. The same limits as a
trial's are not set here; the model passed its trial before.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import ModelError

REPEATS = 3
TIMEOUT_S = 120.0
MAX_ANSWER_BYTES = 4_096
STAGES = ("import_ns", "load_ns", "first_run_ns", "second_run_ns")


def measure_cold(path: Path, clock: Clock, *, threads: int, spinning: bool, seed: int) -> dict[str, object]:
    """Medians over fresh processes, in nanoseconds, and each process's own figures.

    Raises:
        ModelError: a process did not end well.
    """
    runs: list[dict[str, int]] = []
    command = [sys.executable, "-P", "-m", "holdfast.bench.cold_child", str(path.resolve())]
    command += [str(threads), str(int(spinning)), str(seed)]
    for _ in range(REPEATS):
        start_s = clock.monotonic_s()
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S, check=True,
            )  # fmt: skip
            run = json.loads(done.stdout[:MAX_ANSWER_BYTES])
        except (subprocess.SubprocessError, ValueError) as error:
            raise ModelError(f"a fresh process could not load and run the model: {error}") from error
        run["process_ns"] = round((clock.monotonic_s() - start_s) * 1e9)
        runs.append(run)
    medians = {key: sorted(run[key] for run in runs)[len(runs) // 2] for key in (*STAGES, "process_ns")}
    return {"processes": len(runs), "page_cache": "warm", "median": medians, "runs": runs}
