"""Local training: epochs of step-graph runs on the stock runtime, from flat weights to a flat difference.

Needs onnxruntime and numpy only; the step graph is an artefact of the bundle, made elsewhere (its contract is in the
docstring of the module that builds it). Rules:

- the same weights, data and settings give bit-identical results on one machine: seeded shuffle, one thread by default,
  also when a checkpoint was resumed in between;
- a batch that is shorter than the graph's is padded with samples under label -1, which changes nothing;
- a loss or weight that is not finite ends the training with an error, and nothing of it is kept;
- a deadline, or a pause that is too long, ends it between two steps, with what was learned so far.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from holdfast.clock import Clock, SystemClock
from holdfast.errors import StateError, TrainingError
from holdfast.learn.batches import Rows, in_batches, padded, shuffles
from holdfast.learn.checkpoint import Checkpoint, CheckpointFile, training_identity
from holdfast.learn.data import Array, LocalDataset
from holdfast.learn.step_session import LearningSession
from holdfast.learn.steps import (
    LOSS,
    NEW,
    AccumulatingSteps,
    FeedSteps,
    PingPongSteps,
    Steps,
    anchors,
    fed,
    initial_state,
    noise,
)
from holdfast.learn.training import (
    PING_PONG,
    Accumulation,
    EvaluateResult,
    ProgressCallback,
    ShouldPause,
    TrainerOptions,
    TrainProgress,
    TrainResult,
    TrainSettings,
)
from holdfast.learn.yielding import Gate
from holdfast.update.bounds import measured_norm
from holdfast.update.layout import FlatLayout, Floats

TRAIN, EVALUATE, ACCUMULATE, APPLY = "train", "evaluate", "accumulate", "apply"
EVALUATION_OUTPUTS = ("loss_sum", "correct", "count")
SUMS = ("accumulated.total.new", "accumulated.divisor.new")


@dataclass(slots=True)
class _Course:
    """How far one training got; changes with every step."""

    settings: TrainSettings
    dataset: LocalDataset
    progress: ProgressCallback | None
    state: Mapping[str, Array]
    loss_before: float
    step_size: int = 1
    gradient_norm: float = 0.0
    epochs: int = 0
    steps: int = 0
    resumed_epochs: int = 0
    earlier_cpu_seconds: float = 0.0
    checkpoint_problem: str = ""

    def report(self, loss: float) -> None:
        if self.progress is not None:
            asked = self.settings
            steps = asked.epochs * -(-self.dataset.count // self.step_size)
            self.progress(TrainProgress(self.epochs + 1, asked.epochs, self.steps, steps, loss))


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
        accumulation: Accumulation | None = None,
    ) -> None:
        self._graphs = {TRAIN: train_graph, EVALUATE: evaluate_graph}
        self._batches_per_step = 1
        if accumulation is not None:
            self._graphs |= {ACCUMULATE: accumulation.accumulate, APPLY: accumulation.apply}
            self._batches_per_step = accumulation.batches
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
        *,
        should_pause: ShouldPause | None = None,
        checkpoint: CheckpointFile | None = None,
    ) -> TrainResult:
        """Train from `weights` (float32[layout.element_count], not modified).

        Args:
            should_pause: asked before every step; training waits while it says True.
            checkpoint: where to keep the state after each epoch, and to go on from; the caller discards it.

        Raises: TrainingError: settings out of range, data that doesn't fit the graph, or a loss that is not finite.
        """
        started = time.process_time()  # CPU time used, which no clock of the house knows
        is_plain = self._batches_per_step == 1
        session = self._session(TRAIN if is_plain else ACCUMULATE, weights)  # takes the batches
        stepping = session if is_plain else self._session(APPLY, weights)  # has the state
        settings.check(session.batch)
        identity = training_identity(self._identity, weights, dataset, settings) if checkpoint else ""
        course = self._begin(stepping, weights, dataset, settings, checkpoint.load(identity) if checkpoint else None)
        course.progress = progress
        course.step_size = settings.batch * self._batches_per_step
        gate = Gate(
            self._clock,
            should_pause,
            deadline_s=settings.deadline_monotonic_s,
            longest_pause_s=self._options.longest_pause_s,
        )
        fixed = {**anchors(stepping, self._layout.unpack(weights)), **_numbers(stepping, settings)}
        steps = self._steps(stepping, course.state, fixed)
        if not is_plain:
            steps = AccumulatingSteps(session, stepping, course.state, fixed)
        finished = True
        for epoch, order in enumerate(shuffles(dataset.count, settings.epochs, settings.seed)):
            if epoch < course.epochs:
                continue  # drawn only to bring the generator to where it was
            finished = self._run_epoch(steps, order, session, gate, course)
            course.state = steps.state()
            if not finished:
                break
            course.epochs += 1
            if checkpoint is not None:
                _save(checkpoint, identity, course, time.process_time() - started)
        return self._result(weights, course, stopped_early=not finished, started=started)

    def evaluate(self, weights: Floats, dataset: LocalDataset) -> EvaluateResult:
        """Mean loss and, where a prediction can be right, how many are, of `weights` over all samples of `dataset`.

        Raises: TrainingError: the data doesn't fit the graph, or the loss is not finite.
        """
        if dataset.count == 0:
            raise TrainingError("there are no samples to evaluate on; at least one is needed")
        session = self._session(EVALUATE, weights)
        state = fed(session, self._layout.unpack(weights))
        loss_sum, correct, count = 0.0, 0, 0
        for rows in in_batches(np.arange(dataset.count), session.batch):
            found = session.run(EVALUATION_OUTPUTS, {**state, **padded(dataset, rows, session.batch)})
            loss_sum += float(found[0])
            correct += int(found[1])
            count += int(found[2])
        if not np.isfinite(loss_sum):
            raise TrainingError("the loss over the samples is not finite; these weights cannot be evaluated")
        if count == 0:
            raise TrainingError("every sample bears the label that is ignored; at least one other is needed")
        return EvaluateResult(loss_sum / count, correct if dataset.contract.knows_right else None, count)

    def _begin(
        self,
        session: LearningSession,
        weights: Floats,
        dataset: LocalDataset,
        settings: TrainSettings,
        saved: Checkpoint | None,
    ) -> _Course:
        state = initial_state(session, self._layout.unpack(weights))
        if saved is None or _forms(saved.state) != _forms(state):
            return _Course(settings, dataset, None, state, self.evaluate(weights, dataset).loss)
        return _Course(
            settings,
            dataset,
            None,
            saved.state,
            saved.loss_before,
            gradient_norm=saved.gradient_norm,
            epochs=saved.epochs,
            steps=saved.steps,
            resumed_epochs=saved.epochs,
            earlier_cpu_seconds=saved.cpu_seconds,
        )

    def _steps(self, session: LearningSession, state: Mapping[str, Array], fixed: Mapping[str, Array]) -> Steps:
        made = PingPongSteps if self._options.buffers == PING_PONG else FeedSteps
        return made(session, state, fixed)

    def _run_epoch(self, steps: Steps, order: Rows, session: LearningSession, gate: Gate, course: _Course) -> bool:
        """False: the gate closed before the epoch was over."""
        for rows in in_batches(order, course.step_size):
            if not gate.may_go_on():
                return False
            loss = steps.step(*self._batches(rows, session, course))
            course.steps += 1
            if not np.isfinite(loss):
                raise TrainingError(f"the loss of step {course.steps} is {loss}; lower the learning rate")
            if course.steps == 1:
                course.gradient_norm = self._change(course.state, steps.state()) / course.settings.learning_rate
            course.report(loss)
        return True

    def _batches(self, rows: Rows, session: LearningSession, course: _Course) -> list[dict[str, Array]]:
        """The batches of one step, each with noise of its own."""
        seed, first = course.settings.seed, course.steps * self._batches_per_step
        return [
            {**padded(course.dataset, part, session.batch), **noise(session, seed, first + number)}
            for number, part in enumerate(in_batches(rows, course.settings.batch))
        ]

    def _result(self, weights: Floats, course: _Course, *, stopped_early: bool, started: float) -> TrainResult:
        flat = self._with_state(weights, course.state)
        after = self.evaluate(flat, course.dataset)
        delta = self._layout.trainable_part(flat) - self._layout.trainable_part(weights)
        frozen = {entry.name for entry in self._layout.entries if not entry.trainable}
        if not (np.all(np.isfinite(delta)) and np.isfinite(after.loss)):
            raise TrainingError(f"the weights are not finite after {course.steps} steps; lower the learning rate")
        return TrainResult(
            delta=delta,
            sample_count=course.dataset.count,
            loss_before=course.loss_before,
            loss_after=after.loss,
            delta_norm=measured_norm(delta),
            gradient_norm=course.gradient_norm,
            steps=course.steps,
            cpu_seconds=course.earlier_cpu_seconds + time.process_time() - started,
            stopped_early=stopped_early,
            local_state={
                name: tensor for name, tensor in self._layout.unpack(flat).items() if name in frozen & set(course.state)
            },
            resumed_epochs=course.resumed_epochs,
            checkpoint_problem=course.checkpoint_problem,
        )

    def _change(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> float:
        """||after - before||_2 over the parameters."""
        tensors = [np.subtract(after[name], before[name], dtype=np.float32) for name in self._names]
        return measured_norm(np.concatenate([tensor.reshape(-1) for tensor in tensors]))

    def _with_state(self, weights: Floats, state: Mapping[str, Array]) -> Floats:
        tensors = self._layout.unpack(weights)
        return self._layout.pack({name: state.get(name, tensor) for name, tensor in tensors.items()})

    def _session(self, which: str, weights: Floats) -> LearningSession:
        if not self._frozen:
            if which not in self._sessions:
                self._sessions[which] = self._load(which, None)
            return self._sessions[which]
        self._layout.check_weights(weights)
        return self._load(which, weights.tobytes())

    @property
    def _identity(self) -> bytes:
        """The graphs that decide what a training gives."""
        if self._batches_per_step == 1:
            return self._graphs[TRAIN]
        return b"".join((self._graphs[ACCUMULATE], self._graphs[APPLY], b"%d" % self._batches_per_step))

    def _load(self, which: str, weights: bytes | None) -> LearningSession:
        outputs: tuple[str, ...] = (*(name + NEW for name in self._names), LOSS)
        if which in (EVALUATE, ACCUMULATE):
            outputs = EVALUATION_OUTPUTS if which == EVALUATE else SUMS
        graph = self._graphs[which]
        return LearningSession(graph, which, outputs, weights=weights, threads=self._options.intra_op_threads)


def _numbers(session: LearningSession, settings: TrainSettings) -> dict[str, Array]:
    """The scalar inputs that a round sets. Raises: TrainingError: one is asked for that the graph does not have."""
    asked = {
        "learning_rate": settings.learning_rate,
        "proximal_mu": settings.proximal_mu,
        "clip_norm": settings.gradient_clip or float(np.finfo(np.float32).max),
    }
    for name, is_asked in (("proximal_mu", settings.proximal_mu > 0), ("clip_norm", settings.gradient_clip > 0)):
        if is_asked and name not in session.inputs:
            raise TrainingError(f"the step graph has no input {name!r}; pack the model again with that option")
    return {name: np.array(value, dtype=np.float32) for name, value in asked.items() if name in session.inputs}


def _save(file: CheckpointFile, identity: str, course: _Course, cpu_seconds: float) -> None:
    checkpoint = Checkpoint(
        epochs=course.epochs,
        steps=course.steps,
        state=course.state,
        loss_before=course.loss_before,
        gradient_norm=course.gradient_norm,
        cpu_seconds=course.earlier_cpu_seconds + cpu_seconds,
    )
    try:
        file.save(identity, checkpoint)
    except StateError as error:
        # a full disk must not cost what was learned: the training goes on without its safety net, and says so
        course.checkpoint_problem = str(error)


def _forms(state: Mapping[str, Array]) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {name: (array.dtype.str, array.shape) for name, array in state.items()}
