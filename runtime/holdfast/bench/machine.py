"""What a figure was measured on: processor, cores, versions. Fields that cannot be read are null, never guessed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy
import onnxruntime

MAX_PROC_BYTES = 65_536


def describe_machine() -> dict[str, object]:
    """The machine as JSON fields."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "os": platform.system(),
        "python": platform.python_version(),
        "numpy": numpy.__version__,
        "onnxruntime": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }


def _cpu_model() -> str | None:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            for line in file.read(MAX_PROC_BYTES).splitlines():
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return None
