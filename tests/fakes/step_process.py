"""Training steps in a process of their own, to see what memory they take: `python -m tests.fakes.step_process FOLDER`.

The folder holds `warm.onnx`, a small step that brings the runtime to life, and the step to be measured: `train.onnx`,
`weights.bin`, `feeds.npz`. Prints one line: bytes of resident memory at its highest, above what there was before.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np

from holdfast.learn.step_session import LearningSession
from holdfast.update.layout import Floats

STEPS = 4


def resident(which: str) -> int:
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return 1024 * int(found[1])


def main(folder: Path) -> None:
    warm = LearningSession((folder / "warm.onnx").read_bytes(), "train", (), weights=None, threads=1)
    warm.run(warm.outputs, {name: warm.zeros_of(name) for name in warm.inputs})
    del warm
    before = resident("VmRSS")
    weights = (folder / "weights.bin").read_bytes()
    with np.load(folder / "feeds.npz", allow_pickle=False) as archive:
        feeds: dict[str, Floats] = {name: archive[name] for name in archive.files}
    session = LearningSession((folder / "train.onnx").read_bytes(), "train", (), weights=weights, threads=1)
    for _ in range(STEPS):
        made = dict(zip(session.outputs, session.run(session.outputs, feeds), strict=True))
        feeds |= {name.removesuffix(".new"): value for name, value in made.items() if name.endswith(".new")}
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
