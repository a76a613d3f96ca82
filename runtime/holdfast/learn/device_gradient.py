"""The gradient that a step graph applies, read off one step, and how far it is from the slope of the loss.

It must be the slope block by block of the parameters: along the gradient itself, and along random signs, which also see
what the gradient leaves out. For signs r of n values, E[(e . r)^2] = ||e||^2, so (slope - g . r) is an estimate of the
error ||e||. Central differences; the step is small enough for the curvature and large enough for float32, and what
float32 cannot tell apart is allowed for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.bundle.files import LOSS_GRAPH
from holdfast.bundle.training import SGD
from holdfast.errors import TrainingError
from holdfast.learn.data import Array
from holdfast.learn.reference_optimizer import decay_of, gradient_shown
from holdfast.learn.step_session import LearningSession
from holdfast.learn.steps import LOSS, NEW, Feeds, anchors, fed, initial_state
from holdfast.learn.trainable import TrainableBundle

# A power of two, so large that p.new = p - rate * g keeps all digits of g: g = (p - p.new) / rate is exact to float32.
PROBE_RATE = 2.0**40
LOSS_CHANGE = 0.01  # of the loss, on either side of a difference along the gradient
WEIGHT_CHANGE, LARGEST_WEIGHT_CHANGE = 0.003, 0.05  # of the weights' size, along random signs
LOSS_NOISE = 2e-6  # how exactly float32 gives a loss, relative, and absolute below 1
NOISE_MARGIN = 4.0
TOLERANCE = 0.25  # of the whole gradient; a wrong rule is off by its own size, kinks of deep nets by up to a tenth
ZERO_WEIGHT = 5.0
LOSS_TOLERANCE = 1e-3
MAX_BLOCKS = 8
SIGNS = 2  # random directions per block
SEED = 0

Floats64 = NDArray[np.float64]
LossAt = Callable[[Mapping[str, Floats64]], float]


@dataclass(frozen=True, slots=True)
class Probe:
    """The parameters that have a gradient, by name, that gradient, and the feeds of the batch it was measured with.

    `loss` is what the step says of the batch.
    """

    train: LearningSession
    feeds: Feeds
    parameters: Mapping[str, Floats64]
    gradient: Mapping[str, Floats64]
    loss: float

    @property
    def norm(self) -> float:
        return norm_of(self.gradient.values())


def probed(opened: TrainableBundle, train: LearningSession, batch: Feeds) -> Probe:
    """The gradient of a batch, read off one step from zero state with anchors at the weights and no bound."""
    optimizer, tensors = opened.training.optimizer, opened.layout.unpack(opened.weights)
    names = [entry.name for entry in opened.layout.trainable if entry.name not in opened.training.statistics]
    scalars = {"learning_rate": PROBE_RATE, "proximal_mu": 0.0, "clip_norm": float(np.finfo(np.float32).max)}
    feeds = {**batch, **initial_state(train, tensors), **anchors(train, tensors), **scalar_inputs(train, scalars)}
    places = [gradient_shown(optimizer, name) for name in names]
    missing = [place for place, _ in places if place + NEW not in train.outputs]
    if missing:
        raise TrainingError(f"the train graph lacks output {missing[0] + NEW!r}, which {optimizer.name} has")
    *made, loss = train.run([*(place + NEW for place, _ in places), LOSS], feeds)
    parameters = {name: tensors[name].astype(np.float64) for name in names}
    gradient = {}
    for name, (_, factor), array in zip(names, places, made, strict=True):
        wide = array.astype(np.float64)
        shown = (parameters[name] - wide) / PROBE_RATE if optimizer.name == SGD else wide / factor
        gradient[name] = shown - decay_of(optimizer) * parameters[name]
    return Probe(train, feeds, parameters, gradient, float(loss))


def gradient_error(opened: TrainableBundle, probe: Probe) -> float:
    """The largest difference between gradient and slope over all blocks and directions, of the gradient's norm.

    Raises: TrainingError: the step says another loss than the model's.
    """
    loss_at = _loss_of(opened, probe)
    loss = loss_at({})
    if not abs(loss - probe.loss) <= LOSS_TOLERANCE * max(1.0, abs(loss)):
        raise TrainingError(f"the training step says the loss {probe.loss:.4g}, the model's is {loss:.4g}")
    rng = np.random.Generator(np.random.PCG64(SEED))
    noise_of_loss = LOSS_NOISE * max(abs(loss), 1.0)
    return max(
        _error_along(loss_at, probe, direction, step, noise_of_loss)
        for block in _blocks(list(probe.parameters))
        for direction, step in _directions(probe, block, abs(loss), rng)
    )


def _directions(
    probe: Probe, block: list[str], loss: float, rng: np.random.Generator
) -> Iterator[tuple[dict[str, Floats64], float]]:
    """(direction, length of the first step) for some of the parameters: the gradient, if it has a part, then signs."""
    parameters = {name: probe.parameters[name] for name in block}
    gradient = {name: probe.gradient[name] for name in block}
    length, size = norm_of(gradient.values()), max(_size(parameters), 0.1 * _size(probe.parameters), 1e-3)
    if length > TOLERANCE * probe.norm:
        count = sum(array.size for array in parameters.values())
        step = min(LOSS_CHANGE * max(loss, 1e-3) / length, LARGEST_WEIGHT_CHANGE * size * math.sqrt(count))
        yield {name: array / length for name, array in gradient.items()}, step
    wished = LOSS_NOISE * max(loss, 1.0) / (0.2 * TOLERANCE * max(probe.norm, 1e-12) * size)
    share = min(max(wished, WEIGHT_CHANGE), LARGEST_WEIGHT_CHANGE)
    for _ in range(SIGNS):
        yield _signs(parameters, rng), share * size


def _signs(parameters: Mapping[str, Floats64], rng: np.random.Generator) -> dict[str, Floats64]:
    return {
        name: np.asarray(rng.integers(0, 2, array.shape) * 2 - 1, dtype=np.float64)
        for name, array in parameters.items()
    }


def _error_along(
    loss_at: LossAt, probe: Probe, direction: Mapping[str, Floats64], first: float, noise_of_loss: float
) -> float:
    """The difference along one direction, beyond what float32 cannot tell; the least over some lengths of the step.

    A kink of ReLU, and curvature, cost less with a shorter step; a wrong gradient costs the same at every length.
    Shorter steps are taken while float32 can still tell the gradient, or where it never could, because it is so small.
    A part that claims to be all zero, which an unfinished rule looks like, is weighed more: it has no kinks to excuse.
    """
    is_zero = not any(np.any(probe.gradient[name]) for name in direction)
    scale = probe.norm / ZERO_WEIGHT if is_zero else probe.norm
    slope = sum(float(np.vdot(probe.gradient[name], array)) for name, array in direction.items())
    is_tiny = NOISE_MARGIN * noise_of_loss / first > TOLERANCE * probe.norm
    smallest = math.inf
    for step in (first, first / 4, first / 16):
        unsure = NOISE_MARGIN * noise_of_loss / step
        if step < first and not is_tiny and unsure > 0.5 * TOLERANCE * probe.norm:
            break
        there, back = (
            loss_at({name: probe.parameters[name] + sign * step * array for name, array in direction.items()})
            for sign in (1.0, -1.0)
        )
        error = abs((there - back) / (2 * step) - slope)
        smallest = min(smallest, (error - unsure) / scale if scale else float(error > unsure))
        if smallest <= TOLERANCE / 2:
            break
    return max(smallest, 0.0)


def _loss_of(opened: TrainableBundle, probe: Probe) -> LossAt:
    """The loss of the batch with some parameters replaced: by the loss graph, or by the step graph without one."""
    graph = opened.bundle.files.get(LOSS_GRAPH)
    session = probe.train
    if graph is not None:
        session = LearningSession(graph, "loss", (LOSS,), weights=opened.weights.tobytes(), threads=1)
    given = {**fed(session, opened.layout.unpack(opened.weights)), **probe.feeds}
    given = {name: array for name, array in given.items() if name in session.inputs}

    def loss_at(changed: Mapping[str, Floats64]) -> float:
        replaced = {name: array.astype(np.float32) for name, array in changed.items()}
        return float(session.run([LOSS], {**given, **replaced})[0])

    return loss_at


def scalar_inputs(session: LearningSession, numbers: Mapping[str, float]) -> dict[str, Array]:
    return {name: np.array(value, dtype=np.float32) for name, value in numbers.items() if name in session.inputs}


def _blocks(names: list[str]) -> list[list[str]]:
    """At most MAX_BLOCKS runs of neighbours."""
    width = -(-len(names) // MAX_BLOCKS)
    return [names[start : start + width] for start in range(0, len(names), width)]


def norm_of(arrays: Iterable[Floats64]) -> float:
    """The 2-norm of all values together."""
    return math.sqrt(sum(float(np.vdot(array, array)) for array in arrays))


def _size(parameters: Mapping[str, Floats64]) -> float:
    """Root mean square."""
    count = sum(array.size for array in parameters.values())
    return norm_of(parameters.values()) / math.sqrt(max(count, 1))
