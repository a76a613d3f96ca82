"""Before a bundle learns on a device: are its graphs those of the served model, and do they step right here?

The author checked the gradient in float64 when the bundle was packed; what can still go wrong is this machine: another
runtime version, another kernel, a graph that an optimizer of the runtime rewrites wrongly. A few runs of one batch:

1. The evaluation graph must give the loss that follows from the served model's own answers.
2. The gradient is read off one step from zero state: off the state where the optimizer keeps some, off the parameters
   where it steps along the gradient. It must be the slope of the loss, block by block of the parameters: along the
   gradient itself, and along random signs, which also see what the gradient leaves out. For signs r of n values,
   E[(e . r)^2] = ||e||^2 for an error e, so (slope - g . r) is an estimate of ||e||. Central differences; the step is
   small enough for the curvature and large enough for float32, and what float32 cannot tell apart is allowed for.
3. One more step, from made-up state with every option that the graph has, must be what the optimizer's formula makes of
   that gradient (`reference_optimizer.py`).

Known limit: an error of less than a tenth of the whole gradient is left to the author's check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.bundle.files import LOSS_GRAPH, MODEL_FILE, WEIGHTS_FILE
from holdfast.bundle.manifest import LOGITS
from holdfast.bundle.training import BINARY_CROSS_ENTROPY, SGD, SOFTMAX_CROSS_ENTROPY
from holdfast.errors import TrainingError
from holdfast.inference.session import ModelSource, load_session
from holdfast.learn.batches import padded
from holdfast.learn.data import Array, LocalDataset
from holdfast.learn.reference_loss import mean_loss
from holdfast.learn.reference_optimizer import (
    SECOND,
    STEP_COUNT,
    StepNumbers,
    counts_steps,
    decay_of,
    gradient_shown,
    slots_of,
    updated,
)
from holdfast.learn.step_session import LearningSession
from holdfast.learn.steps import ANCHOR, LOSS, NEW, AccumulatingSteps, Feeds, anchors, fed, initial_state, noise
from holdfast.learn.trainable import TrainableBundle
from holdfast.learn.training import Accumulation

# A power of two, so large that p.new = p - rate * g keeps all digits of g: g = (p - p.new) / rate is exact to float32.
PROBE_RATE = 2.0**40
LOSS_CHANGE = 0.01  # of the loss, on either side of a difference along the gradient
WEIGHT_CHANGE, LARGEST_WEIGHT_CHANGE = 0.003, 0.05  # of the weights' size, along random signs
LOSS_NOISE = 2e-6  # how exactly float32 gives a loss, relative, and absolute below 1
NOISE_MARGIN = 4.0
TOLERANCE = 0.1  # of the whole gradient; a wrong rule is off by its own size, kinks of ReLU cost 2 %
RULE_TOLERANCE = 1e-3  # of a step's length; float32 needs 1e-5
LOSS_TOLERANCE = 1e-3
MAX_BLOCKS = 8
SIGNS = 2  # random directions per block
SEED = 0
POWERS = {SECOND: 2}  # of the gradient, that a slot keeps

Floats64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """errors are relative: to the norm of the whole gradient, and to the length of a step."""

    gradient_norm: float
    gradient_error: float
    rule_error: float


@dataclass(frozen=True, slots=True)
class _Probe:
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
        return _norm(self.gradient.values())


def check_on_device(opened: TrainableBundle, dataset: LocalDataset) -> DeviceCheck:
    """Check a bundle's graphs on this machine, at its own weights, with the first samples.

    Raises: TrainingError: the graphs are of another model, or they step wrongly here.
    """
    rows = np.arange(min(dataset.count, opened.training.batch))
    if rows.size == 0:
        raise TrainingError("there are no samples to check the graphs with; at least one is needed")
    check_same_model(opened, dataset.take(rows))
    train = LearningSession(opened.train_graph, "train", (LOSS,), weights=opened.weights.tobytes(), threads=1)
    probe = _probed(opened, train, {**padded(dataset, rows, train.batch), **noise(train, 0, 0)})
    if not math.isfinite(probe.norm):
        raise TrainingError("the gradient on this machine is not finite; the bundle must not learn here")
    gradient_error = _gradient_error(opened, probe)
    if not gradient_error <= TOLERANCE:
        raise TrainingError(
            f"the gradient is wrong on this machine: it differs from the slope of the loss by {gradient_error:.2g} of "
            f"its length, allowed is {TOLERANCE:g}; report the bundle and the runtime version"
        )
    rule_error = _rule_error(opened, probe)
    if not rule_error <= RULE_TOLERANCE:
        raise TrainingError(
            f"a step on this machine is not what {opened.training.optimizer.name} makes of the gradient: it is off by "
            f"{rule_error:.2g} of its length, allowed is {RULE_TOLERANCE:g}; report the bundle and the runtime version"
        )
    return DeviceCheck(probe.norm, gradient_error, rule_error)


def check_same_model(opened: TrainableBundle, samples: LocalDataset) -> None:
    """Compare the evaluation graph's loss with that of the served model's own answers, if it gives any numbers.

    Raises: TrainingError: they are not the same model.
    """
    loss, scores = opened.training.loss, opened.manifest.scores
    floats = [tensor.name for tensor in opened.manifest.outputs if tensor.dtype == "float32"]
    if not floats:
        return
    output = floats[0] if scores is None else scores.output
    files = opened.bundle.files
    session = load_session(ModelSource(files[MODEL_FILE], {WEIGHTS_FILE: files[WEIGHTS_FILE]}))
    answers = [  # one by one: the served batch axis may be fixed to 1
        session.run({name: array[row : row + 1] for name, array in samples.inputs.items()})[output]
        for row in range(samples.count)
    ]
    predictions = np.concatenate(answers).astype(np.float64)
    # without scores in the manifest nothing says whether a classifier serves logits or probabilities
    is_either = scores is None and loss.name in (SOFTMAX_CROSS_ENTROPY, BINARY_CROSS_ENTROPY)
    readings = [True, False] if is_either else [scores is None or scores.kind == LOGITS]
    expected = [mean_loss(loss, predictions, samples.labels, is_logits=each) for each in readings]
    if all(math.isnan(each) for each in expected):
        return
    found = opened.trainer.evaluate(opened.weights, samples).loss
    if not any(abs(each - found) <= LOSS_TOLERANCE * max(1.0, abs(each)) for each in expected):
        raise TrainingError(
            f"the training graphs are not of the served model: its answers give the loss {expected[0]:.4g}, "
            f"the evaluation graph {found:.4g}"
        )


def _probed(opened: TrainableBundle, train: LearningSession, batch: Feeds) -> _Probe:
    """The gradient of a batch, read off one step from zero state with anchors at the weights and no bound."""
    optimizer, tensors = opened.training.optimizer, opened.layout.unpack(opened.weights)
    names = [entry.name for entry in opened.layout.trainable if entry.name not in opened.training.statistics]
    scalars = {"learning_rate": PROBE_RATE, "proximal_mu": 0.0, "clip_norm": float(np.finfo(np.float32).max)}
    feeds = {**batch, **initial_state(train, tensors), **anchors(train, tensors), **_scalars(train, scalars)}
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
    return _Probe(train, feeds, parameters, gradient, float(loss))


def _gradient_error(opened: TrainableBundle, probe: _Probe) -> float:
    """The largest difference between gradient and slope over all blocks and directions, of the gradient's norm."""
    loss_at = _loss_of(opened, probe)
    found = loss_at({})
    if not abs(found - probe.loss) <= LOSS_TOLERANCE * max(1.0, abs(found)):
        raise TrainingError(f"the training step says the loss {probe.loss:.4g}, the model's is {found:.4g}")
    loss = abs(found)
    noise_of_loss = LOSS_NOISE * max(loss, 1.0)
    rng = np.random.Generator(np.random.PCG64(SEED))
    typical = _size(probe.parameters)
    worst = 0.0
    for block in _blocks(list(probe.parameters)):
        parameters = {name: probe.parameters[name] for name in block}
        gradient = {name: probe.gradient[name] for name in block}
        length, size = _norm(gradient.values()), max(_size(parameters), 0.1 * typical, 1e-3)
        count = sum(array.size for array in parameters.values())
        directions: list[tuple[dict[str, Floats64], float]] = []
        if length > TOLERANCE * probe.norm:
            h = min(LOSS_CHANGE * max(loss, 1e-3) / length, LARGEST_WEIGHT_CHANGE * size * math.sqrt(count))
            directions.append(({name: array / length for name, array in gradient.items()}, h))
        wished = noise_of_loss / (0.2 * TOLERANCE * max(probe.norm, 1e-12) * size)
        share = min(max(wished, WEIGHT_CHANGE), LARGEST_WEIGHT_CHANGE)
        for _ in range(SIGNS):
            signs = {name: rng.choice([-1.0, 1.0], array.shape) for name, array in parameters.items()}
            directions.append((signs, share * size))
        for direction, h in directions:
            there, back = (loss_at({n: p + s * h * direction[n] for n, p in parameters.items()}) for s in (1.0, -1.0))
            expected = sum(float(np.vdot(gradient[name], direction[name])) for name in block)
            error = abs((there - back) / (2 * h) - expected)
            unsure = NOISE_MARGIN * noise_of_loss / h
            worst = max(worst, (error - unsure) / probe.norm if probe.norm else float(error > unsure))
    return worst


def _rule_error(opened: TrainableBundle, probe: _Probe) -> float:
    """The largest difference between one step of the graph and the formula's, of the step's length."""
    optimizer, train = opened.training.optimizer, probe.train
    rng = np.random.Generator(np.random.PCG64(SEED))
    scale = {name: max(float(np.abs(array).max(initial=0.0)), 1e-6) for name, array in probe.gradient.items()}
    state = {
        f"{name}.{slot}": (rng.uniform(0.1, 1.0, array.shape) * scale[name] ** POWERS.get(slot, 1)).astype(np.float32)
        for name, array in probe.gradient.items()
        for slot in slots_of(optimizer)
    }
    given: dict[str, Array] = {name: array for name, array in state.items() if name in train.inputs}
    if len(given) < len(state):
        raise TrainingError(f"the train graph lacks the state that {optimizer.name} keeps")
    if counts_steps(optimizer):
        given[STEP_COUNT] = np.array(2.0, dtype=np.float32)
    shifted = {name: (p - 0.1 * scale[name]).astype(np.float32) for name, p in probe.parameters.items()}
    given |= {name + ANCHOR: array for name, array in shifted.items() if name + ANCHOR in train.inputs}
    has_pull, has_bound = "proximal_mu" in train.inputs, "clip_norm" in train.inputs
    numbers = StepNumbers(
        learning_rate=0.01,
        proximal_mu=0.5 if has_pull else 0.0,
        gradient_clip=max(0.5 * probe.norm, 1e-6) if has_bound else math.inf,
        count=3,
    )
    scalars = {"learning_rate": 0.01, "proximal_mu": 0.5, "clip_norm": numbers.gradient_clip}
    given |= _scalars(train, scalars)
    names = [*probe.parameters, *state]
    steps = [train.run([name + NEW for name in names], {**probe.feeds, **given})]
    if opened.accumulation is not None:
        steps.append(_accumulated(opened.accumulation, opened.weights.tobytes(), {**probe.feeds, **given}, names))
    wide = {name: array.astype(np.float64) for name, array in {**shifted, **state}.items()}
    anchored = {name: wide[name] for name in probe.parameters}
    expected = updated(optimizer, probe.parameters, probe.gradient, anchored, wide, numbers)
    before = {**wide, **probe.parameters}
    return max(
        _difference(before[name], expected[name], array.astype(np.float64))
        for made in steps
        for name, array in zip(names, made, strict=True)
    )


def _difference(before: Floats64, wanted: Floats64, made: Floats64) -> float:
    """Of a value that was to change from `before` to `wanted`, relative to that change."""
    rounding = 1e-6 * float(np.linalg.norm(before)) + 1e-12
    return (float(np.linalg.norm(made - wanted)) - rounding) / (float(np.linalg.norm(wanted - before)) + rounding)


def _accumulated(graphs: Accumulation, weights: bytes, feeds: Feeds, names: list[str]) -> list[Array]:
    """A step over the same batch twice, which has the same mean gradient."""
    batches = LearningSession(graphs.accumulate, "accumulate", (), weights=weights, threads=1)
    apply = LearningSession(graphs.apply, "apply", (), weights=weights, threads=1)
    state = {name: feeds[name] for name in (output.removesuffix(NEW) for output in apply.outputs) if name in feeds}
    fixed = {name: array for name, array in feeds.items() if name in apply.inputs and name not in state}
    steps = AccumulatingSteps(batches, apply, state, fixed)
    batch = {name: array for name, array in feeds.items() if name in batches.inputs and name not in state}
    steps.step(batch, batch)
    made = steps.state()
    return [made[name] for name in names]


def _loss_of(opened: TrainableBundle, probe: _Probe) -> Callable[[Mapping[str, Floats64]], float]:
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


def _scalars(session: LearningSession, numbers: Mapping[str, float]) -> dict[str, Array]:
    return {name: np.array(value, dtype=np.float32) for name, value in numbers.items() if name in session.inputs}


def _blocks(names: list[str]) -> list[list[str]]:
    """At most MAX_BLOCKS runs of neighbours."""
    width = -(-len(names) // MAX_BLOCKS)
    return [names[start : start + width] for start in range(0, len(names), width)]


def _norm(arrays: Iterable[Floats64]) -> float:
    return math.sqrt(sum(float(np.vdot(array, array)) for array in arrays))


def _size(parameters: Mapping[str, Floats64]) -> float:
    """Root mean square."""
    count = sum(array.size for array in parameters.values())
    return _norm(parameters.values()) / math.sqrt(max(count, 1))
