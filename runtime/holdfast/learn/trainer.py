"""Local training: epochs of step-graph runs on the stock runtime, from flat weights to a flat difference.

Needs onnxruntime and numpy only; the step graph is an artefact of the bundle, made elsewhere (its contract is in the
docstring of the module that builds it). Rules:

- the same weights, data and settings give bit-identical results on one machine: seeded shuffle, one thread by default;
- the last short batch is padded with copies of its first sample under label -1, which changes nothing (copies, because
  zeros could divide by zero in a normalisation and turn the padded gradient into NaN);
- a step's inputs and outputs never share memory: the runtime may write a new weight before the backward pass has read
  the old one, silently. Plain feeds give every step fresh outputs;
- a loss or weight that is not finite ends the training with an error, and nothing of it is kept;
- a deadline ends it between two steps, with what was learned so far.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.clock import Clock, SystemClock
from holdfast.errors import TrainingError
from holdfast.learn.data import Array, LocalDataset
from holdfast.learn.step_session import LearningSession
from holdfast.update.bounds import measured_norm
from holdfast.update.layout import FlatLayout, Floats

TRAIN, EVALUATE = "train", "evaluate"
EVALUATION_OUTPUTS = ("loss_sum", "correct", "count")
PADDING_LABEL = -1

Feeds = dict[str, Array]


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """`intra_op_threads`: threads per operator; 1 keeps results bit-identical and leaves the machine to serving."""

    intra_op_threads: int = 1


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What an offer asks for. `batch` must be the one the step graph was built for.

    `deadline_monotonic_s` is a time of the trainer's clock (`Clock.monotonic_s`); None: no deadline.
    """

    epochs: int
    batch: int
    learning_rate: float
    seed: int
    deadline_monotonic_s: float | None = None


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """After each step: how far, and the mean loss of that step's batch."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What training gave.

    delta: float32[layout.trainable_element_count], new weights minus old, in layout order.
    sample_count: samples in the dataset, the weight of this delta in an average.
    losses are means over the whole dataset; delta_norm is ||delta||_2; cpu_seconds is of the whole process.
    """

    delta: Floats
    sample_count: int
    loss_before: float
    loss_after: float
    delta_norm: float
    steps: int
    cpu_seconds: float
    stopped_early: bool


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Mean loss over `count` samples, of which `correct` were predicted right."""

    loss: float
    correct: int
    count: int

    @property
    def accuracy(self) -> float:
        return self.correct / self.count


ProgressCallback = Callable[[TrainProgress], None]


class Trainer:
    """Runs the step and evaluation graphs of one bundle. Not thread-safe.

    Raises: TrainingError: the runtime refuses a graph, or it does not keep the contract for this layout.
    """

    def __init__(
        self,
        train_graph: bytes,
        evaluate_graph: bytes,
        layout: FlatLayout,
        options: TrainerOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._graphs = {TRAIN: train_graph, EVALUATE: evaluate_graph}
        self._layout = layout
        self._options = options or TrainerOptions()
        self._clock = clock or SystemClock()
        self._names = [entry.name for entry in layout.trainable]
        # frozen weights live inside a session, so sessions outlive a call only where nothing is frozen
        self._frozen = len(self._names) < len(layout.entries)
        self._sessions: dict[str, LearningSession] = {}
        if not self._names:
            raise TrainingError("the layout has no trainable parameter")

    def train(
        self,
        weights: Floats,
        dataset: LocalDataset,
        settings: TrainSettings,
        progress: ProgressCallback | None = None,
    ) -> TrainResult:
        """Train from `weights` (float32[layout.element_count], not modified).

        Raises: TrainingError: settings out of range, data that doesn't fit the graph, or a loss that is not finite.
        """
        _check_settings(settings)
        started = time.process_time()  # CPU time used, which no clock of the house knows
        session = self._session(TRAIN, weights)
        if settings.batch != session.batch:
            raise TrainingError(f"the step graph was built for batch {session.batch}, asked for {settings.batch}")
        before = self.evaluate(weights, dataset)
        state, steps, stopped = self._run_steps(session, weights, dataset, settings, progress)
        flat = self._with_state(weights, state)
        after = self.evaluate(flat, dataset)
        delta = self._layout.trainable_part(flat) - self._layout.trainable_part(weights)
        if not (np.all(np.isfinite(delta)) and np.isfinite(after.loss)):
            raise TrainingError(f"the weights are not finite after {steps} steps; lower the learning rate")
        return TrainResult(
            delta=delta,
            sample_count=dataset.count,
            loss_before=before.loss,
            loss_after=after.loss,
            delta_norm=measured_norm(delta),
            steps=steps,
            cpu_seconds=time.process_time() - started,
            stopped_early=stopped,
        )

    def evaluate(self, weights: Floats, dataset: LocalDataset) -> EvaluateResult:
        """Mean loss and correct predictions of `weights` over all samples of `dataset`.

        Raises: TrainingError: the data doesn't fit the graph, or the loss is not finite.
        """
        if dataset.count == 0:
            raise TrainingError("there are no samples to evaluate on; at least one is needed")
        session = self._session(EVALUATE, weights)
        state = self._state_of(weights)
        loss_sum, correct, count = 0.0, 0, 0
        for rows in _in_batches(np.arange(dataset.count), session.batch):
            found = session.run({**state, **_padded(dataset, rows, session.batch)})
            loss_sum += float(found[0])
            correct += int(found[1])
            count += int(found[2])
        if not np.isfinite(loss_sum):
            raise TrainingError("the loss over the samples is not finite; these weights cannot be evaluated")
        return EvaluateResult(loss=loss_sum / count, correct=correct, count=count)

    def _run_steps(
        self,
        session: LearningSession,
        weights: Floats,
        dataset: LocalDataset,
        settings: TrainSettings,
        progress: ProgressCallback | None,
    ) -> tuple[Mapping[str, Array], int, bool]:
        """The parameters after training, how many steps were done, and whether the deadline cut it short."""
        state: Mapping[str, Array] = self._state_of(weights)
        rng = np.random.Generator(np.random.PCG64(settings.seed))
        rate = np.array(settings.learning_rate, dtype=np.float32)
        steps = settings.epochs * -(-dataset.count // settings.batch)
        step = 0
        for epoch in range(settings.epochs):
            for rows in _in_batches(rng.permutation(dataset.count), settings.batch):
                if self._is_late(settings):
                    return state, step, True
                feeds = {**state, **_padded(dataset, rows, settings.batch), "learning_rate": rate}
                *new, loss = session.run(feeds)
                step += 1
                if not np.isfinite(loss):
                    raise TrainingError(f"the loss of step {step} is {loss}; lower the learning rate")
                state = dict(zip(self._names, new, strict=True))
                if progress is not None:
                    progress(TrainProgress(epoch + 1, settings.epochs, step, steps, float(loss)))
        return state, step, False

    def _is_late(self, settings: TrainSettings) -> bool:
        deadline = settings.deadline_monotonic_s
        return deadline is not None and self._clock.monotonic_s() >= deadline

    def _state_of(self, weights: Floats) -> dict[str, Array]:
        tensors = self._layout.unpack(weights)
        return {name: tensors[name] for name in self._names}

    def _with_state(self, weights: Floats, state: Mapping[str, Array]) -> Floats:
        return self._layout.pack({**self._layout.unpack(weights), **state})

    def _session(self, which: str, weights: Floats) -> LearningSession:
        if not self._frozen:
            if which not in self._sessions:
                self._sessions[which] = self._load(which, None)
            return self._sessions[which]
        self._layout.check_weights(weights)
        return self._load(which, weights.tobytes())

    def _load(self, which: str, weights: bytes | None) -> LearningSession:
        outputs = EVALUATION_OUTPUTS if which == EVALUATE else (*(name + ".new" for name in self._names), "loss")
        graph = self._graphs[which]
        return LearningSession(graph, which, outputs, weights=weights, threads=self._options.intra_op_threads)


def _check_settings(settings: TrainSettings) -> None:
    if settings.epochs < 1:
        raise TrainingError(f"epochs must be 1 or more, got {settings.epochs}")
    if not (math.isfinite(settings.learning_rate) and settings.learning_rate > 0):
        raise TrainingError(f"the learning rate must be a positive number, got {settings.learning_rate}")
    if settings.seed < 0:
        raise TrainingError(f"the seed must be 0 or more, got {settings.seed}")


def _in_batches(rows: NDArray[np.int64], batch: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, rows.size, batch):
        yield rows[start : start + batch]


def _padded(dataset: LocalDataset, rows: NDArray[np.int64], batch: int) -> Feeds:
    """The samples at `rows` as the inputs of one step, filled up to `batch` with ignored copies of the first."""
    filled = np.full(batch, rows[0], dtype=np.int64)
    filled[: rows.size] = rows
    labels = np.full(batch, PADDING_LABEL, dtype=np.int64)
    labels[: rows.size] = dataset.labels[rows]
    return {**{name: array[filled] for name, array in dataset.inputs.items()}, "labels": labels}
