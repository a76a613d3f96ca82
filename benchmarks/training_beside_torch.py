"""Our training steps beside PyTorch's eager ones: time of a step, and the peak memory of a whole process.

Both start from the same weights on the same batch, and must agree on the loss before anything is measured. PyTorch is
looked for in this Python, or in the one that the environment variable TORCH_PYTHON names (it needs torch and numpy);
nothing of Holdfast needs it. The processes that are timed do nothing else, so their peak memory is that of training.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from benchmarks.harness import Figures, NotRun, Options, Outcome, compare
from benchmarks.training_nets import NETS, Net
from benchmarks.training_steps import Workplace, batch_of

from holdfast.autodiff.build import StepOptions, build_graphs
from holdfast.autodiff.externalise import split_weights

OURS, TORCH = "ours", "torch"
NAME = "training/torch"
ALIKE_STEPS, ALIKE = 8, 2e-3  # losses after so many steps differ by float32 rounding only
FIGURES = ("p50_us", "cpu_us", "peak_mib")


def run(options: Options) -> list[Outcome]:
    python = os.environ.get("TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode != 0:
        return [NotRun(NAME, "torch is not installed, and TORCH_PYTHON names no Python that has it")]
    outcomes: list[Outcome] = []
    for net in NETS:
        for batch in net.batches[:1] if options.quick else net.batches:
            with tempfile.TemporaryDirectory() as folder:
                place = prepared(net, batch, Path(folder))
                outcomes += _one(net, batch, place, python, options)
    return outcomes


def prepared(net: Net, batch: int, folder: Path) -> Workplace:
    """The files that both sides start from."""
    model, place = net.onnx(), Workplace(folder)
    step = StepOptions(batch_norm=net.batch_norm)
    graphs = build_graphs(model, batch=batch, trainable=net.trainable, options=step)
    place.graph.write_bytes(graphs.train)
    place.frozen.write_bytes(split_weights(model, layout=graphs.layout).weights)
    tensors = onnx.load_model_from_string(model).graph.initializer
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in tensors}
    names = {entry.name for entry in graphs.layout.entries}
    np.savez(place.initial, **{name: array for name, array in arrays.items() if name in names})
    np.savez(place.batch, **batch_of(net.shape, batch, net.words))
    return place


def _one(net: Net, batch: int, place: Workplace, python: str, options: Options) -> list[Outcome]:
    name = f"training/{net.name}-{batch}"
    count = max(2, net.steps * 10 // batch // (5 if options.quick else 1))
    with Child(python, TORCH, net, place) as theirs, Child(sys.executable, OURS, net, place) as ours:
        expected, found = theirs.steps(ALIKE_STEPS)["loss"], ours.steps(ALIKE_STEPS)["loss"]
        if not abs(found - expected) <= ALIKE * abs(expected):
            raise RuntimeError(f"{name}: loss {found} after {ALIKE_STEPS} steps, torch has {expected}")
        a = ("torch eager step", lambda: theirs.block(count))
        return compare(name, a, ("our step", lambda: ours.block(count)), options.rounds)


class Child:
    """A fresh process that does training steps when told to; ended on leaving the block."""

    def __init__(self, python: str, kind: str, net: Net, place: Workplace) -> None:
        command = [python, "-m", "benchmarks.training_steps", kind, net.name, str(place.folder)]
        root = Path(__file__).resolve().parents[1]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
        )

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def steps(self, count: int) -> Figures:
        """Raises: RuntimeError: the process ended; its last words are in the message."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise AssertionError("started with pipes")
        stdin.write(f"{count}\n")
        stdin.flush()
        line = stdout.readline()
        if not line:
            _, words = self._process.communicate()
            raise RuntimeError(f"a training process ended with {self._process.returncode}: {words[-2000:]}")
        figures: dict[str, float] = json.loads(line)
        return figures

    def block(self, count: int) -> Figures:
        figures = self.steps(count)
        return {name: figures[name] for name in FIGURES}
