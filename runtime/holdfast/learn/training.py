"""What goes into a local training and what comes out of it: settings, progress, results."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast.errors import TrainingError
from holdfast.update.layout import Floats

FEEDS, PING_PONG = "feeds", "ping-pong"


@dataclass(frozen=True, slots=True)
class TrainerOptions:
    """How steps run on this machine; none of it changes a bit of the result while `intra_op_threads` is 1.

    intra_op_threads: threads per operator; 1 keeps results bit-identical and leaves the machine to serving.
    buffers: "ping-pong" (two fixed sets of weights that take turns) or "feeds" (every step makes fresh outputs, which
        takes 2 to 7 % longer and as much memory).
    longest_pause_s: how long training waits for serving before it ends with what it has.

    Raises: TrainingError: out of range.
    """

    intra_op_threads: int = 1
    buffers: str = PING_PONG
    longest_pause_s: float = 600.0

    def __post_init__(self) -> None:
        cores = os.cpu_count() or 1
        if not 1 <= self.intra_op_threads <= cores:
            raise TrainingError(f"threads must be between 1 and {cores} on this machine, got {self.intra_op_threads}")
        if self.buffers not in (FEEDS, PING_PONG):
            raise TrainingError(f"buffers must be {FEEDS!r} or {PING_PONG!r}, got {self.buffers!r}")


@dataclass(frozen=True, slots=True)
class Accumulation:
    """Graphs for steps over `batches` batches: one adds a batch's gradients to sums, the other makes a step of them."""

    accumulate: bytes
    apply: bytes
    batches: int


@dataclass(frozen=True, slots=True)
class TrainSettings:
    """What an offer asks for. `batch` is at most what the step graph was built for; a smaller one is padded.

    `deadline_monotonic_s` is a time of the trainer's clock (`Clock.monotonic_s`); None: no deadline.
    `proximal_mu` (FedProx) and `gradient_clip` (a bound of the gradient's norm at each step; 0: none) need a step graph
    that was built for them.
    """

    epochs: int
    batch: int
    learning_rate: float
    seed: int
    deadline_monotonic_s: float | None = None
    proximal_mu: float = 0.0
    gradient_clip: float = 0.0

    def check(self, graph_batch: int) -> None:
        """Raise TrainingError for values out of range, or a batch that the step graph cannot take."""
        if self.epochs < 1:
            raise TrainingError(f"epochs must be 1 or more, got {self.epochs}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise TrainingError(f"the learning rate must be a positive number, got {self.learning_rate}")
        for name, value in (("proximal_mu", self.proximal_mu), ("gradient_clip", self.gradient_clip)):
            if not (math.isfinite(value) and value >= 0):
                raise TrainingError(f"{name} must be a number of 0 or more, got {value}")
        if self.seed < 0:
            raise TrainingError(f"the seed must be 0 or more, got {self.seed}")
        if not 1 <= self.batch <= graph_batch:
            raise TrainingError(
                f"the step graph was built for batch {graph_batch}, asked for {self.batch}; "
                f"take 1 to {graph_batch}, or pack the model again with a larger one"
            )


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
    gradient_norm: ||p - p.new||_2 / learning rate of the first step: for plain SGD the norm of the first batch's
    gradient, for other optimizers that of their first step. 0 without a step.
    local_state: values that training changed but that are no part of the delta, by name: running statistics that stay
    on this device. resumed_epochs: epochs that a checkpoint had already. checkpoint_problem: why none could be written.
    """

    delta: Floats
    sample_count: int
    loss_before: float
    loss_after: float
    delta_norm: float
    gradient_norm: float
    steps: int
    cpu_seconds: float
    stopped_early: bool
    local_state: Mapping[str, Floats] = field(default_factory=dict)
    resumed_epochs: int = 0
    checkpoint_problem: str = ""


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """Mean loss over `count` labels (of a multi-label model several per sample), of which `correct` were found.

    `correct` and `accuracy` are None where labels are numbers, which a prediction is only nearer to or further from.
    """

    loss: float
    correct: int | None
    count: int

    @property
    def accuracy(self) -> float | None:
        return None if self.correct is None else self.correct / self.count


ProgressCallback = Callable[[TrainProgress], None]
ShouldPause = Callable[[], bool]  # True while serving needs the machine; asked before every step, so it must be quick
