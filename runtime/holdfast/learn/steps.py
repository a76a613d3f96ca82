"""Runs training steps one after the other: each takes the state that the one before it left.

The state of a step graph is every input `<name>` that has an output `<name>.new`: the parameters, and whatever an
optimizer remembers of them (`<parameter>.<slot>`), which starts at zero and lives as long as this object: for one
training, which is one round of a run; the next round's optimizer begins anew, and nothing of it is sent. Statistics
that are in the layout start as the weights have them. An input `<parameter>.anchor` gets the parameter as it was before
the first step (a FedProx term pulls towards it), `<value>.uniform` fresh numbers from [0, 1) at every step (a dropout
draws from them), from the training's seed and the number of the step.

The one rule that matters: an output of a step never lies in the memory of one of its inputs. The runtime may write a
new weight before the backward pass has read the old one, without an error. Plain feeds make every output afresh;
ping-pong has two sets of memory that take turns (A -> B, B -> A), and refuses to be built otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
import onnxruntime

from holdfast.errors import TrainingError
from holdfast.inference.session import ORT_ERRORS, ort_reason
from holdfast.learn.data import Array
from holdfast.learn.step_session import LearningSession

NEW, ANCHOR, UNIFORM, LOSS = ".new", ".anchor", ".uniform", "loss"
NOISE_STREAM = 1  # keeps the noise apart from the shuffle, which draws from the same seed

Feeds = Mapping[str, Array]


class Steps(Protocol):
    """A run of steps."""

    def step(self, *batches: Feeds) -> float:
        """Do one step; returns its mean loss. A batch is data inputs, labels and noise; a plain step takes just one."""

    def state(self) -> dict[str, Array]:
        """The state after the last step; arrays of its own, which later steps don't change."""


def initial_state(session: LearningSession, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What the first step starts from: `tensors` (the weights by name), and zeros for every other slot.

    Raises: TrainingError: a slot has no static shape.
    """
    named = [name.removesuffix(NEW) for name in session.outputs if name.endswith(NEW)]
    return {
        name: tensors[name] if name in tensors else session.zeros_of(name) for name in named if name in session.inputs
    }


def fed(session: LearningSession, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Those of the weights that are inputs of a graph; it refers to the others itself."""
    return {name: value for name, value in tensors.items() if name in session.inputs}


def anchors(session: LearningSession, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """What the inputs `<parameter>.anchor` get."""
    return {name + ANCHOR: value for name, value in tensors.items() if name + ANCHOR in session.inputs}


def noise(session: LearningSession, seed: int, step: int) -> dict[str, Array]:
    """What the inputs `<value>.uniform` get at a step: float32 in [0, 1), the same for the same seed and step."""
    names = [name for name in session.inputs if name.endswith(UNIFORM)]
    rng = np.random.Generator(np.random.PCG64([seed, NOISE_STREAM, step])) if names else None
    return {} if rng is None else {n: rng.random(session.zeros_of(n).shape, dtype=np.float32) for n in names}


class FeedSteps:
    """Plain runs: the state goes in as feeds and comes out as new arrays."""

    def __init__(self, session: LearningSession, state: Mapping[str, Array], fixed: Feeds) -> None:
        self._session = session
        self._state = dict(state)
        self._fixed = dict(fixed)
        self._outputs = [*(name + NEW for name in state), LOSS]

    def step(self, *batches: Feeds) -> float:
        (feeds,) = batches
        *new, loss = self._session.run(self._outputs, {**self._state, **self._fixed, **feeds})
        self._state = dict(zip(self._state, new, strict=True))
        return float(loss)

    def state(self) -> dict[str, Array]:
        return dict(self._state)


class AccumulatingSteps:
    """Steps over several batches: their gradients are added up by one graph, and applied by another.

    Plain feeds, as for `FeedSteps`. The sums start at zero in every step.
    """

    def __init__(
        self, accumulate: LearningSession, apply: LearningSession, state: Mapping[str, Array], fixed: Feeds
    ) -> None:
        self._accumulate = accumulate
        self._apply = apply
        self._state = dict(state)
        self._fixed = dict(fixed)
        self._sums = [name.removesuffix(NEW) for name in accumulate.outputs if name.endswith(NEW)]
        self._outputs = [*(name + NEW for name in state), LOSS]

    def step(self, *batches: Feeds) -> float:
        sums = {name: self._accumulate.zeros_of(name) for name in self._sums}
        read = fed(self._accumulate, self._state)
        for feeds in batches:
            added = self._accumulate.run([name + NEW for name in self._sums], {**read, **sums, **feeds})
            sums = dict(zip(self._sums, added, strict=True))
        *new, loss = self._apply.run(self._outputs, {**self._state, **self._fixed, **sums})
        self._state = dict(zip(self._state, new, strict=True))
        return float(loss)

    def state(self) -> dict[str, Array]:
        return dict(self._state)


class PingPongSteps:
    """Bound runs between two sets of memory; saves an allocation per weight and step, costs the weights once more.

    Raises: TrainingError: the state does not fit the graph.
    """

    def __init__(self, session: LearningSession, state: Mapping[str, Array], fixed: Feeds) -> None:
        self._session = session
        self._names = list(state)
        # the runtime keeps using a numpy array's own memory: copies, so that no caller's array is written to
        first = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.array(value)) for name, value in state.items()}
        second = {name: onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros_like(value)) for name, value in state.items()}
        self._sets = (first, second)
        self._loss = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros((), dtype=np.float32))
        self._fixed = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value) for name, value in fixed.items()}
        self._bindings = (self._bind(first, second), self._bind(second, first))
        self._turn = 0

    def step(self, *batches: Feeds) -> float:
        (feeds,) = batches
        binding = self._bindings[self._turn]
        held = {name: np.asarray(value, order="C") for name, value in feeds.items()}  # alive until the run is over
        try:
            for name, value in held.items():
                binding.bind_cpu_input(name, value)
            self._session.runtime.run_with_iobinding(binding)
        except ORT_ERRORS as error:
            raise TrainingError(f"the {self._session.label} graph failed: {ort_reason(error)}") from error
        self._turn = 1 - self._turn
        return float(self._loss.numpy())

    def state(self) -> dict[str, Array]:
        return {name: np.array(value.numpy()) for name, value in self._sets[self._turn].items()}

    def _bind(
        self, before: Mapping[str, onnxruntime.OrtValue], after: Mapping[str, onnxruntime.OrtValue]
    ) -> onnxruntime.IOBinding:
        check_apart([*before.values(), *self._fixed.values()], [*after.values(), self._loss])
        binding = self._session.runtime.io_binding()
        try:
            for name in self._names:
                binding.bind_ortvalue_input(name, before[name])
                binding.bind_ortvalue_output(name + NEW, after[name])
            for name, value in self._fixed.items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(LOSS, self._loss)
        except ORT_ERRORS as error:
            raise TrainingError(
                f"the weights don't fit the {self._session.label} graph: {ort_reason(error)}"
            ) from error
        return binding


def check_apart(inputs: Iterable[onnxruntime.OrtValue], outputs: Iterable[onnxruntime.OrtValue]) -> None:
    """Raise RuntimeError if an output overlaps an input or another output: training would go wrong in silence."""
    spans = [(*_span(value), is_output) for is_output, values in ((False, inputs), (True, outputs)) for value in values]
    written_to, read_to = 0, 0
    for start, stop, is_output in sorted(span for span in spans if span[0] < span[1]):
        if start < written_to or (is_output and start < read_to):
            raise RuntimeError("an output of a training step shares memory with another value of it")
        if is_output:
            written_to = max(written_to, stop)
        else:
            read_to = max(read_to, stop)


def _span(value: onnxruntime.OrtValue) -> tuple[int, int]:
    array = value.numpy()
    return value.data_ptr(), value.data_ptr() + array.nbytes
