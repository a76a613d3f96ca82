"""Before a bundle learns on a device: are its graphs those of the served model, and do they step right here?

The author checked the gradient in float64 when the bundle was packed; what can still go wrong is this machine: another
runtime version, another kernel, a graph that an optimizer of the runtime rewrites wrongly. A few runs of one batch:

1. The evaluation graph must give the loss that follows from the served model's own answers.
2. The gradient is read off one step from zero state: off the state where the optimizer keeps some, off the parameters
   where it steps along the gradient. It must be the slope of the loss (`device_gradient.py`).
3. One more step, from made-up state with every option that the graph has, must be what the optimizer's formula makes of
   that gradient (`reference_optimizer.py`).

Known limit: an error of less than a quarter of the whole gradient is left to the author's check.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from holdfast.bundle.files import MODEL_FILE, WEIGHTS_FILE
from holdfast.bundle.manifest import LOGITS
from holdfast.bundle.training import BINARY_CROSS_ENTROPY, SOFTMAX_CROSS_ENTROPY
from holdfast.errors import TrainingError
from holdfast.inference.session import ModelSource, load_session
from holdfast.learn.batches import padded
from holdfast.learn.data import Array, LocalDataset
from holdfast.learn.device_gradient import (
    LOSS_TOLERANCE,
    TOLERANCE,
    Floats64,
    Probe,
    gradient_error,
    norm_of,
    probed,
    scalar_inputs,
)
from holdfast.learn.reference_loss import mean_loss
from holdfast.learn.reference_optimizer import (
    SECOND,
    STEP_COUNT,
    StepNumbers,
    counts_steps,
    slots_of,
    updated,
)
from holdfast.learn.step_session import LearningSession
from holdfast.learn.steps import ANCHOR, LOSS, NEW, AccumulatingSteps, Feeds, noise
from holdfast.learn.trainable import TrainableBundle
from holdfast.learn.training import Accumulation

RULE_TOLERANCE = 1e-3  # of a step's length; float32 needs 1e-5
SEED = 0
POWERS = {SECOND: 2}  # of the gradient, that a slot keeps


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """errors are relative: to the norm of the whole gradient, and to the length of a step."""

    gradient_norm: float
    gradient_error: float
    rule_error: float


def check_on_device(opened: TrainableBundle, dataset: LocalDataset) -> DeviceCheck:
    """Check a bundle's graphs on this machine, at its own weights, with the first samples.

    Raises: TrainingError: the graphs are of another model, or they step wrongly here.
    """
    rows = np.arange(min(dataset.count, opened.training.batch))
    if rows.size == 0:
        raise TrainingError("there are no samples to check the graphs with; at least one is needed")
    check_same_model(opened, dataset.take(rows))
    train = LearningSession(opened.train_graph, "train", (LOSS,), weights=opened.weights.tobytes(), threads=1)
    probe = probed(opened, train, {**padded(dataset, rows, train.batch), **noise(train, 0, 0)})
    if not math.isfinite(probe.norm):
        raise TrainingError("the gradient on this machine is not finite; the bundle must not learn here")
    error = gradient_error(opened, probe)
    if not error <= TOLERANCE:
        raise TrainingError(
            f"the gradient is wrong on this machine: it differs from the slope of the loss by {error:.2g} of "
            f"its length, allowed is {TOLERANCE:g}; report the bundle and the runtime version"
        )
    rule_error = _rule_error(opened, probe)
    if not rule_error <= RULE_TOLERANCE:
        raise TrainingError(
            f"a step on this machine is not what {opened.training.optimizer.name} makes of the gradient: it is off by "
            f"{rule_error:.2g} of its length, allowed is {RULE_TOLERANCE:g}; report the bundle and the runtime version"
        )
    return DeviceCheck(probe.norm, error, rule_error)


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


def _rule_error(opened: TrainableBundle, probe: Probe) -> float:
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
    given |= scalar_inputs(train, scalars)
    names = [*probe.parameters, *state]
    steps = [train.run([name + NEW for name in names], {**probe.feeds, **given})]
    if opened.accumulation is not None:
        steps.append(_accumulated(opened.accumulation, opened.weights.tobytes(), {**probe.feeds, **given}, names))
    wide = {name: array.astype(np.float64) for name, array in {**shifted, **state}.items()}
    anchored = {name: wide[name] for name in probe.parameters}
    expected = updated(optimizer, probe.parameters, probe.gradient, anchored, wide, numbers)
    before = {**wide, **probe.parameters}
    groups = [
        list(probe.parameters),
        *([f"{name}.{slot}" for name in probe.parameters] for slot in slots_of(optimizer)),
    ]
    return max(
        _difference(before, expected, {name: made[names.index(name)] for name in group})
        for made in steps
        for group in groups
    )


def _difference(before: Mapping[str, Floats64], wanted: Mapping[str, Floats64], made: Mapping[str, Array]) -> float:
    """Of values that were to change from `before` to `wanted`, relative to the change of all of them together.

    Together, because a gradient that is zero but for rounding differs from run to run by its own size.
    """
    rounding = 1e-6 * norm_of([before[name] for name in made]) + 1e-12
    difference = norm_of([array.astype(np.float64) - wanted[name] for name, array in made.items()])
    change = norm_of([wanted[name] - before[name] for name in made])
    return max(0.0, difference - rounding) / (change + rounding)


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
