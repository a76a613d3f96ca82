"""What passes between the fronts, the scheduler and those who listen: requests that wait, answers, labels, counters.

Why protocols and not base classes: observe and learn stand beside this room and must not be imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.errors import HoldfastError
from holdfast.inference.pool import ServedModel
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse

OK = "ok"


@dataclass(slots=True)  # not frozen: that costs 1 us in every request; nobody changes one
class TapEvent:
    """Requests that were answered together, in one run; often one. Arrays are shared, not copies: read only.

    model, version: of one that is served; empty where the requests named none, whatever they wrote instead.
    request_ids, latencies_s: of each request. outcome: "ok", or the code of the error that all of them got.
    inputs, outputs: their rows, one after the other along the first axis.
    """

    model: str
    version: str
    request_ids: Sequence[str]
    latencies_s: Sequence[float]
    outcome: str
    inputs: Mapping[str, Array] | None
    outputs: Mapping[str, Array] | None


class RequestTap(Protocol):
    """Told of every answer, on the thread that gives it."""

    def on_response(self, event: TapEvent) -> None:
        """Take note. Must not block, must not raise, must bound what it keeps."""


class LabelSink(Protocol):
    """Takes the true outcome of an earlier request, when somebody learns it."""

    def on_labels(self, model: str, request_id: str, labels: Array) -> None:
        """Take note. labels: int64[batch], in the order of the request's rows. Must not block or raise."""


Answer = TensorResponse | HoldfastError
OnLeave = Callable[[Callable[[], None] | None], None]  # whom to tell when the client leaves; None = nobody any more


@dataclass(slots=True, eq=False)  # not frozen: that would cost each request 0.5 us, and nobody changes one
class Pending:
    """A decoded request that waits for its answer. `done` is called exactly once.

    deadline_s: on the monotonic clock; None = it may wait as long as the queue lets it.
    priority: 1 is served first, larger numbers later, 0 means "not said" (as in Triton's request parameter).
    """

    request: TensorRequest
    deadline_s: float | None
    done: Callable[[Answer], None]
    priority: int = 0


class QuickRuns(Protocol):
    """Runs on the loop's thread, without a queue, for whoever has joined requests by itself.

    inline_limit_s: the longest run that is quick. turn_s: how long the loop's thread may run models at a time.
    """

    inline_limit_s: float
    turn_s: float

    def find_free(self, name: str, version: str) -> ServedModel | None:
        """A model, if nothing waits in front of it; None if the call must queue up."""

    def find_quick(self, name: str, version: str) -> ServedModel | None:
        """A model whose rows may share a run, if nothing waits in front of it; None if the call must queue up."""

    def run_quick(
        self,
        model: ServedModel,
        inputs: Mapping[str, Array],
        wanted: tuple[str, ...],
        rows: Sequence[int],
        came_s: Sequence[float],
    ) -> Mapping[str, Array] | None:
        """Run joined requests: `rows` of each, and when it came. None if that failed: then each must run alone."""


class Scheduler(QuickRuns, Protocol):
    """Decides when and with whom a request runs."""

    def submit(self, batch: Sequence[Pending]) -> None:
        """Take what arrived in one tick of the loop. On the loop's thread; `done` is called there too."""

    def abandon(self, asked: Sequence[Pending]) -> None:
        """Nobody waits for these any more: they leave the queue with AbandonedError, and a run for them alone ends."""

    def run(
        self,
        requests: Sequence[TensorRequest],
        deadline_s: float | None = None,
        *,
        priority: int = 0,
        on_leave: OnLeave | None = None,
    ) -> list[Answer]:
        """Answer requests in their order, on the caller's thread or while it waits. Not for the loop's thread.

        Args:
            on_leave: when the client leaves, what waits is answered with AbandonedError, and a run for it alone ends.
        """

    def waiting(self) -> Mapping[str, int]:
        """How many requests wait now, by model."""


@dataclass(slots=True)  # not frozen, as above
class BatchEvent:
    """One run of a model. Times are seconds; `queue_s` is the sum over the requests of the run.

    `rows` counts the clients' rows, without padding; `failed` is the number of its requests that got an error.
    """

    model: str
    version: str
    requests: int
    rows: int
    failed: int
    queue_s: float
    compute_s: float


class SchedulerObserver(Protocol):
    """Counts what the scheduler does. Called on the thread that did it; must be quick, thread-safe and not raise."""

    def on_batch(self, event: BatchEvent) -> None:
        """A model ran."""

    def on_refused(self, model: str, version: str, code: str) -> None:
        """A request was answered without a run: unknown model, overload, deadline, server stopping."""


@dataclass(frozen=True, slots=True)
class VersionState:
    """One version of a model in a repository. `state`: READY, LOADING, UNLOADING or UNAVAILABLE; `reason` says why."""

    name: str
    version: str
    state: str
    reason: str = ""


class ModelRepository(Protocol):
    """Where models come from while the server runs."""

    def index(self) -> Sequence[VersionState]:
        """Every known version, by name and version."""

    def load(self, name: str) -> None:
        """Load or reload a model; returns when it is served. Raises ModelError, UnknownModelError."""

    def unload(self, name: str) -> None:
        """Stop serving a model; returns when no request starts on it any more. Raises UnknownModelError."""
