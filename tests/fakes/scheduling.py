"""A loop, a worker and an alarm that do nothing until a test says so, and a model that tells when it runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock

from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, ModelSource, RunStop, load_session
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse
from holdfast.inference.traits import Mixing, Traits
from holdfast.serving.protocols import Answer, BatchEvent, Pending
from holdfast.serving.scheduler import ModelScheduler, SchedulerOptions

BUCKETS = (1, 2, 4, 8)
QUICK_S, SLOW_S = 1e-5, 0.1


def traits(run_s: float | None = QUICK_S, buckets: tuple[int, ...] = (), elements: int = 4) -> Traits:
    """Of a model that mixes rows in these buckets, each of which takes as long as a single row; none = never mixes."""
    mixing = Mixing(bool(buckets), "the test says so", buckets)
    return Traits(run_s, elements, dict.fromkeys(buckets, run_s or 0.0), True, mixing)


class WatchedSession(ModelSession):
    """A loaded model that calls `on_run` with its inputs, and can end as if it had been stopped."""

    def __init__(self, model: bytes, of: Traits) -> None:
        super().__init__(load_session(ModelSource(model))._session, of)
        self.on_run: Callable[[Mapping[str, Array], RunStop | None], None] = lambda inputs, stop: None
        self.batches: list[int] = []

    def run_checked(
        self, inputs: Mapping[str, Array], outputs: tuple[str, ...] = (), stop: RunStop | None = None
    ) -> dict[str, Array]:
        self.batches.append(len(next(iter(inputs.values()))))
        self.on_run(inputs, stop)
        return super().run_checked(inputs, outputs, stop)


class FakeWorker:
    def __init__(self, jobs: deque[Callable[[], None]]) -> None:
        self._jobs = jobs

    def start(self, job: Callable[[], None]) -> None:
        self._jobs.append(job)


class FakeAlarm:
    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring, self.times, self.is_closed = ring, list[float](), False

    def at(self, when_s: float) -> None:
        self.times.append(when_s)

    def close(self) -> None:
        self.is_closed = True


@dataclass
class FakeShell:
    """Implements `holdfast.serving.shell.Shell`: jobs lie in `jobs` until a test runs them."""

    jobs: deque[Callable[[], None]] = field(default_factory=deque)
    the_alarm: FakeAlarm | None = None

    def worker(self, name: str) -> FakeWorker:
        return FakeWorker(self.jobs)

    def alarm(self, ring: Callable[[], None]) -> FakeAlarm:
        self.the_alarm = FakeAlarm(ring)
        return self.the_alarm


@dataclass
class Counts:
    """Implements `SchedulerObserver`."""

    batches: list[BatchEvent] = field(default_factory=list)
    refused: list[tuple[str, str, str]] = field(default_factory=list)

    def on_batch(self, event: BatchEvent) -> None:
        self.batches.append(event)

    def on_refused(self, model: str, version: str, code: str) -> None:
        self.refused.append((model, version, code))


class Lab:
    """A scheduler with everything around it in a test's hands."""

    def __init__(self, options: SchedulerOptions | None = None) -> None:
        self.clock, self.pool, self.shell, self.counts = FakeClock(), ModelPool(), FakeShell(), Counts()
        self.posted: deque[Callable[[], None]] = deque()
        self.answers: dict[str, list[Answer]] = {}
        self.scheduler = ModelScheduler(
            self.pool, self.clock, self.posted.append, options=options, observer=self.counts, shell=self.shell
        )

    def serve(self, name: str, model: bytes, of: Traits, version: str = "1") -> WatchedSession:
        session = WatchedSession(model, of)
        self.pool.swap(name, version, session)
        return session

    def pending(
        self,
        request: TensorRequest,
        timeout_s: float | None = None,
        priority: int = 0,
        then: Callable[[], None] | None = None,
    ) -> Pending:
        given = self.answers.setdefault(request.request_id, [])

        def done(answer: Answer) -> None:
            given.append(answer)
            if then is not None:
                then()

        deadline_s = None if timeout_s is None else self.clock.monotonic_s() + timeout_s
        return Pending(request, deadline_s, done, priority)

    def ring(self) -> None:
        assert self.shell.the_alarm is not None
        self.shell.the_alarm.ring()

    def work(self) -> None:
        """Let the workers do all their jobs; their answers are still with the loop."""
        while self.shell.jobs:
            self.shell.jobs.popleft()()

    def loop(self) -> None:
        """Let the loop do all that was posted to it."""
        while self.posted:
            self.posted.popleft()()

    def settle(self) -> None:
        while self.shell.jobs or self.posted:
            self.work()
            self.loop()

    def answer(self, request_id: str) -> Answer:
        """The one answer of a request."""
        (answer,) = self.answers[request_id]
        return answer


def ask(request_id: str, rows: int = 1, model: str = "m", value: float = 1.0, version: str = "") -> TensorRequest:
    """A request of so many rows, all of one value."""
    return TensorRequest(model, version, request_id, {"x": np.full((rows, 4), value, dtype=np.float32)})


def quick(lab: Lab, name: str = "m", factor: float = 2.0, version: str = "1") -> WatchedSession:
    """A model that runs on the loop's thread, in batches up to 8."""
    return lab.serve(name, models.scale(factor), traits(QUICK_S, BUCKETS), version)


def slow(lab: Lab, name: str = "m", buckets: tuple[int, ...] = ()) -> WatchedSession:
    """A model that doubles, on its worker."""
    return lab.serve(name, models.scale(2.0), traits(SLOW_S, buckets))


def value_of(answer: object) -> float:
    """The first number of an answer that is no error."""
    assert isinstance(answer, TensorResponse), answer
    return float(answer.outputs["y"][0, 0])
