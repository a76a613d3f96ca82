"""Before a bundle learns on a device: are its graphs those of the served model, and is its gradient right here?

The author checked the gradient in float64 when the bundle was packed; what can still go wrong is this machine: another
runtime version, another kernel, a graph that an optimizer of the runtime rewrites wrongly.
A handful of runs of one batch, once per bundle:

1. The evaluation graph must give the loss that follows from the served model's own scores.
2. Along the direction d that one step takes, the loss must fall as the gradient says. For plain SGD, d = -g, and the
   central difference (L(p + h d/||d||) - L(p - h d/||d||)) / 2h is -||g|| + O(h^2). The step h is such that the loss
   changes by about a hundredth: far above the noise of float32, far below the curvature of a trained net. Kinks of ReLU
   cost up to 2 %. For optimizers that don't step along the gradient, the loss must fall, which is weaker.

Known limit: a part of the gradient that is zero where it should not be is seen by the author's check only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from holdfast.bundle.files import MODEL_FILE, WEIGHTS_FILE
from holdfast.bundle.manifest import LOGITS
from holdfast.errors import TrainingError
from holdfast.inference.session import ModelSource, load_session
from holdfast.learn.batches import padded
from holdfast.learn.data import Array, LocalDataset
from holdfast.learn.step_session import LearningSession
from holdfast.learn.steps import LOSS, NEW, Feeds, anchors, fed, initial_state, noise
from holdfast.learn.trainable import CLASS_LOSS, TrainableBundle
from holdfast.update.bounds import measured_norm
from holdfast.update.layout import Floats

# A power of two, so large that p.new = p - rate * g keeps all digits of g: g = (p - p.new) / rate is exact to float32.
PROBE_RATE = 2.0**40
LOSS_CHANGE = 0.01  # of the loss, on either side of the central difference
WEIGHT_CHANGE = 1e-3  # the same where the gradient's length is not known: of the norm of the weights
TOLERANCE = 0.1  # a wrong rule is off by its own size; kinks cost 2 %
LOSS_TOLERANCE = 1e-3
STEEPEST = ("sgd", "momentum")  # optimizers whose first step is p - rate * g


@dataclass(frozen=True, slots=True)
class DeviceCheck:
    """slope: of the loss along the step, per unit of length; expected: what the gradient says, or NaN if unknown."""

    slope: float
    expected: float
    gradient_norm: float

    @property
    def error(self) -> float:
        """Relative; NaN where only the sign could be checked."""
        return abs(self.slope - self.expected) / abs(self.expected) if self.expected else 0.0


def check_on_device(opened: TrainableBundle, dataset: LocalDataset) -> DeviceCheck:
    """Check a bundle's graphs on this machine, at its own weights, with the first samples.

    Raises: TrainingError: the graphs are of another model, or the gradient is wrong here.
    """
    rows = np.arange(min(dataset.count, opened.training.batch))
    if rows.size == 0:
        raise TrainingError("there are no samples to check the graphs with; at least one is needed")
    check_same_model(opened, dataset.take(rows))
    weights = opened.weights.tobytes()
    train = LearningSession(opened.train_graph, "train", (LOSS,), weights=weights, threads=1)
    feeds = {**padded(dataset, rows, train.batch), **_given(opened, train)}
    direction = _direction(opened, train, feeds)
    norm = measured_norm(direction)
    if not math.isfinite(norm):
        raise TrainingError("the gradient on this machine is not finite; the bundle must not learn here")
    if norm == 0.0:
        return DeviceCheck(0.0, 0.0, 0.0)
    check = _slope(opened, train, feeds, direction / np.float32(norm), norm)
    if not (check.slope < 0 and (math.isnan(check.expected) or check.error <= TOLERANCE)):
        raise TrainingError(
            f"the gradient is wrong on this machine: the loss changes by {check.slope:.3g} along a step, "
            f"expected {check.expected:.3g}; report the bundle and the runtime version"
        )
    return check


def check_same_model(opened: TrainableBundle, samples: LocalDataset) -> None:
    """Compare the evaluation graph's loss with the served model's own scores, for classifiers with known scores.

    Raises: TrainingError: they are not the same model.
    """
    scores = opened.manifest.scores
    if scores is None or opened.training.loss != CLASS_LOSS:
        return
    files = opened.bundle.files
    session = load_session(ModelSource(files[MODEL_FILE], {WEIGHTS_FILE: files[WEIGHTS_FILE]}))
    total = 0.0
    for row in range(samples.count):  # one by one: the served batch axis may be fixed to 1
        found = session.run({name: array[row : row + 1] for name, array in samples.inputs.items()})[scores.output]
        total -= _log_probability(
            found.astype(np.float64)[0], int(samples.labels[row]), is_logits=scores.kind == LOGITS
        )
    expected, found_loss = total / samples.count, opened.trainer.evaluate(opened.weights, samples).loss
    if not abs(expected - found_loss) <= LOSS_TOLERANCE * max(1.0, abs(expected)):
        raise TrainingError(
            f"the training graphs are not of the served model: its scores give the loss {expected:.4g}, "
            f"the evaluation graph {found_loss:.4g}"
        )


def _log_probability(scores: Array, label: int, *, is_logits: bool) -> float:
    values = np.asarray(scores, dtype=np.float64)
    if not is_logits:
        return math.log(max(float(values[label]), 1e-38))
    top = float(values.max())
    return float(values[label]) - top - math.log(float(np.exp(values - top).sum()))


def _given(opened: TrainableBundle, train: LearningSession) -> dict[str, Array]:
    """What a first step gets besides its batch, with a rate so large that the gradient can be read off the step."""
    tensors = opened.layout.unpack(opened.weights)
    numbers = {"learning_rate": PROBE_RATE, "proximal_mu": 0.0, "clip_norm": float(np.finfo(np.float32).max)}
    scalars = {name: np.array(value, dtype=np.float32) for name, value in numbers.items() if name in train.inputs}
    return {**initial_state(train, tensors), **anchors(train, tensors), **noise(train, 0, 0), **scalars}


def _direction(opened: TrainableBundle, train: LearningSession, feeds: Feeds) -> Floats:
    """float32[trainable elements]: (p.new - p) / rate of one step with a very large rate."""
    names = [entry.name for entry in opened.layout.trainable]
    new = train.run([name + NEW for name in names], feeds)
    parts = [
        np.subtract(after, feeds[name], dtype=np.float64) / PROBE_RATE for name, after in zip(names, new, strict=True)
    ]
    return np.concatenate([part.reshape(-1) for part in parts]).astype(np.float32)


def _slope(opened: TrainableBundle, train: LearningSession, feeds: Feeds, unit: Floats, norm: float) -> DeviceCheck:
    def loss_at(weights: Floats) -> float:
        return float(train.run([LOSS], {**feeds, **fed(train, opened.layout.unpack(weights))})[0])

    is_steepest = opened.training.optimizer in STEEPEST
    if is_steepest:
        h = LOSS_CHANGE * max(loss_at(opened.weights), 1e-3) / norm
    else:
        h = WEIGHT_CHANGE * max(measured_norm(opened.weights), 1.0)
    there, back = (loss_at(opened.layout.add_delta(opened.weights, unit * np.float32(s * h))) for s in (1, -1))
    return DeviceCheck((there - back) / (2 * h), -norm if is_steepest else math.nan, norm)
