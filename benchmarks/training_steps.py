"""Training steps in one process: ours on a step graph, PyTorch's in eager mode. Run as a program: the peak memory.

`python -m benchmarks.training_steps ours GRAPH WEIGHTS.npz SHAPE BATCH STEPS` and `... torch NET - SHAPE BATCH STEPS`
do some steps in a fresh process and print the most memory that it ever held, in MiB. Ours imports what a device has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

CLASSES, RATE = 10, 0.01
MLP_SIZES = (784, 200, 200, CLASSES)  # the "2NN" of McMahan et al. 2017


def batch_of(shape: tuple[int, ...], batch: int) -> tuple[np.ndarray, np.ndarray]:
    """float32[batch, *shape] and int64[batch], always the same."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((batch, *shape)).astype(np.float32), rng.integers(0, CLASSES, batch)


def our_step(
    graph: bytes, weights: Mapping[str, np.ndarray], shape: tuple[int, ...], batch: int
) -> Callable[[], object]:
    """A step that goes on from the last one, as the trainer does them."""
    from holdfast.learn.step_session import LearningSession
    from holdfast.learn.steps import FeedSteps

    x, y = batch_of(shape, batch)
    session = LearningSession(graph, "train", (), weights=None, threads=1)
    steps = FeedSteps(session, weights, {"learning_rate": np.array(RATE, np.float32)})
    return lambda: steps.step({"input": x, "labels": y})


def torch_step(net: str, shape: tuple[int, ...], batch: int) -> Callable[[], object]:
    """The plain eager loop: zero_grad, forward, backward, SGD."""
    import torch
    from benchmarks.training_torch import NETS

    torch.set_num_threads(1)
    model = NETS[net]()
    x, y = (torch.from_numpy(array) for array in batch_of(shape, batch))
    optimizer, loss_of = torch.optim.SGD(model.parameters(), lr=RATE), torch.nn.CrossEntropyLoss()

    def step() -> float:
        optimizer.zero_grad()
        loss = loss_of(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def peak_mib() -> float:
    """Of this process since it became this program; `getrusage` would count what its parent held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    if found is None:
        raise OSError("this system does not say how much memory a process used")
    return int(found[1]) / 1024


def main(kind: str, what: str, weights: str, sizes: str, batch: str, steps: str) -> None:
    shape = tuple(int(size) for size in sizes.split("x"))
    if kind == "ours":
        with np.load(weights) as archive:
            arrays = {name: archive[name] for name in archive.files}
        step = our_step(Path(what).read_bytes(), arrays, shape, int(batch))
    else:
        step = torch_step(what, shape, int(batch))
    for _ in range(int(steps)):
        step()
    print(peak_mib())


if __name__ == "__main__":
    main(*sys.argv[1:])
