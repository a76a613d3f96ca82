"""Training steps in a process of their own: ours on a step graph, or PyTorch's in eager mode, one thread each.

`python -m benchmarks.training_steps ours|torch NET FOLDER`, where the folder holds what a step needs (`Workplace`).
Each line on stdin is a number of steps; the answer is one line of JSON: times per step, the loss of the last one, and
the most memory that the process ever held. Ours imports what a device has, PyTorch's what it needs itself.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from benchmarks.harness import timed
from benchmarks.training_sizes import CLASSES, RATE


@dataclass(frozen=True, slots=True)
class Workplace:
    """The files of one measurement."""

    folder: Path

    @property
    def graph(self) -> Path:
        return self.folder / "train.onnx"

    @property
    def initial(self) -> Path:
        """All weights by name, and which of them learn in our graph (`learning`)."""
        return self.folder / "initial.npz"

    @property
    def frozen(self) -> Path:
        """The flat weights, where the graph refers to some."""
        return self.folder / "weights.bin"

    @property
    def batch(self) -> Path:
        return self.folder / "batch.npz"

    def arrays(self, path: Path) -> dict[str, np.ndarray]:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}


def batch_of(shape: tuple[int, ...], batch: int, words: int) -> dict[str, np.ndarray]:
    """`input` and `labels`, always the same; ids below `words` if that is not 0."""
    rng = np.random.default_rng(0)
    if words:
        x: np.ndarray = rng.integers(0, words, (batch, *shape))
    else:
        x = rng.standard_normal((batch, *shape)).astype(np.float32)
    return {"input": x, "labels": rng.integers(0, CLASSES, batch)}


def our_step(place: Workplace) -> Callable[[], float]:
    """A step that goes on from the last one, as the trainer does them."""
    from holdfast.learn.step_session import LearningSession
    from holdfast.learn.steps import PingPongSteps, initial_state

    weights = place.frozen.read_bytes() if place.frozen.exists() else None
    session = LearningSession(place.graph.read_bytes(), "train", (), weights=weights, threads=1)
    state = initial_state(session, place.arrays(place.initial))
    steps = PingPongSteps(session, state, {"learning_rate": np.array(RATE, np.float32)})
    batch = place.arrays(place.batch)
    return lambda: steps.step(batch)


def torch_step(net: str, place: Workplace) -> Callable[[], float]:
    """The plain eager loop: zero_grad, forward, backward, SGD."""
    import torch
    from benchmarks.training_torch import made

    torch.set_num_threads(1)
    model = made(net, place.arrays(place.initial))
    x, y = (torch.from_numpy(array) for array in place.arrays(place.batch).values())
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, loss_of = torch.optim.SGD(learning, lr=RATE), torch.nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return float(loss.item())

    return step


def peak_mib() -> float:
    """Of this process since it became this program; `getrusage` would count what its parent held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise OSError("this system does not say how much memory a process used")
    return int(found[1]) / 1024


def measured(step: Callable[[], float], count: int) -> Mapping[str, float]:
    losses: list[float] = []
    figures = timed(lambda: losses.append(step()), count)
    return {**figures, "loss": losses[-1], "peak_mib": peak_mib()}


def main(kind: str, net: str, folder: str) -> None:
    place = Workplace(Path(folder))
    step = our_step(place) if kind == "ours" else torch_step(net, place)
    for line in sys.stdin:
        print(json.dumps(measured(step, int(line))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
