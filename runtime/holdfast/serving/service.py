"""What every front calls: one request in, one answer out, bounded, timed and told to the taps.

Rules: at most `max_in_flight` requests run or wait at once, more are refused at the door; a tap is told of every
outcome, and a tap that raises is our bug, logged and never the client's.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, OverloadedError, RequestError, UnknownModelError, VersionFormError
from holdfast.inference.pool import ModelPool, ServedModel
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.parameters import InferCall
from holdfast.serving.protocols import OK, OnLeave, RequestTap, Scheduler, SchedulerObserver, TapEvent
from holdfast.serving.refusals import Refusals
from holdfast.serving.scheduler import ModelScheduler
from holdfast.serving.status import INTERNAL_CODE

logger = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1_024  # 8 full connections of 128 streams; tiny ones are answered within 10 ms, others have a queue


class InferenceService:
    """The served models behind the fronts. Thread-safe."""

    def __init__(
        self,
        pool: ModelPool,
        taps: Sequence[RequestTap],
        clock: Clock,
        *,
        max_in_flight: int = MAX_IN_FLIGHT,
        observer: SchedulerObserver | None = None,
    ) -> None:
        self._pool = pool
        self._taps = tuple(taps)
        self._clock = clock
        self.refusals = Refusals(clock)
        self._scheduler: Scheduler = ModelScheduler(pool, clock, lambda callback: callback(), observer=observer)
        self._watchers: list[Callable[[], None]] = []
        self._slots = threading.BoundedSemaphore(max_in_flight)
        self._draining = threading.Event()

    def schedule_with(self, scheduler: Scheduler) -> None:
        """Let a front's scheduler decide from now on, instead of one of our own; before the first request."""
        self._scheduler = scheduler

    def waiting(self) -> Mapping[str, int]:
        """How many requests wait for a run now, by model."""
        return self._scheduler.waiting()

    def infer(
        self, decode: Callable[[], InferCall], deadline_s: float | None = None, on_leave: OnLeave | None = None
    ) -> tuple[InferCall, TensorResponse]:
        """Decode and answer one request, while the caller waits. Not for a loop's thread.

        Raises:
            OverloadedError: too many requests are in flight.
            HoldfastError: what was wrong with the request or with the model's run.
        """
        if not self._slots.acquire(blocking=False):
            error = OverloadedError("too many requests at once; try again in a moment")
            self._tell(TapEvent("", "", ("",), (0.0,), error.code, None, None))
            raise error
        try:
            return self._infer(decode, deadline_s, on_leave)
        finally:
            self._slots.release()

    def model(self, name: str, version: str = "") -> ServedModel:
        """The model served under `name`.

        Raises:
            UnknownModelError: there is none.
        """
        return self._pool.get(name, version)

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Whether requests to it are welcome.

        Raises:
            VersionFormError: there can be no such version.
        """
        try:
            self._pool.get(name, version)
        except VersionFormError:
            raise
        except UnknownModelError:
            return False
        return self.is_ready

    @property
    def is_ready(self) -> bool:
        """Whether new requests are welcome; False while the server drains."""
        return not self._draining.is_set()

    def drain(self) -> None:
        """Say "not ready" from now on; requests that come anyway are still answered."""
        self._draining.set()
        for watcher in tuple(self._watchers):
            watcher()

    def watch(self, watcher: Callable[[], None]) -> Callable[[], None]:
        """Call `watcher` when `is_ready` changes. Returns how to end that."""
        self._watchers.append(watcher)
        return lambda: self._watchers.remove(watcher)

    @property
    def has_taps(self) -> bool:
        """Whether anybody listens."""
        return bool(self._taps)

    def tell(
        self, request: TensorRequest | None, answer: TensorResponse | HoldfastError | None, latency_s: float
    ) -> None:
        """Tell the taps of a request that a front scheduled by itself; `answer` is None if our own code failed."""
        self._tell(self._event(request, answer, latency_s))

    def tell_event(self, event: TapEvent) -> None:
        """Tell the taps of requests that a front answered together."""
        self._tell(event)

    def _infer(
        self, decode: Callable[[], InferCall], deadline_s: float | None, on_leave: OnLeave | None
    ) -> tuple[InferCall, TensorResponse]:
        start_s = self._clock.monotonic_s()
        call: InferCall | None = None
        answer: TensorResponse | HoldfastError | None = None
        try:
            call = decode()
            if call.timeout_s is not None:
                until_s = start_s + call.timeout_s
                deadline_s = until_s if deadline_s is None else min(deadline_s, until_s)
            (answer,) = self._scheduler.run([call.request], deadline_s, priority=call.priority, on_leave=on_leave)
        except HoldfastError as error:
            answer = error
        finally:  # also when our own code failed: a window without its failures would lie
            request = None if call is None else call.request
            self._tell(self._event(request, answer, self._clock.monotonic_s() - start_s))
        if isinstance(answer, HoldfastError):
            raise answer
        assert call is not None  # it was answered
        return call, answer

    def _event(
        self, request: TensorRequest | None, answer: TensorResponse | HoldfastError | None, latency_s: float
    ) -> TapEvent:
        model, version = answer.about if isinstance(answer, RequestError) else ("", "")
        request_id, inputs = "", None
        if request is not None:
            model, version, request_id, inputs = request.model, request.version, request.request_id, request.inputs
        if isinstance(answer, TensorResponse):
            return TapEvent(model, answer.version, (request_id,), (latency_s,), OK, inputs, answer.outputs)
        served = self._pool.find(model, version)  # a name that is not served is the client's words: they go nowhere
        model, version = ("", "") if served is None else (served.name, served.version)
        outcome = INTERNAL_CODE if answer is None else answer.code
        return TapEvent(model, version, (request_id,), (latency_s,), outcome, inputs, None)

    def _tell(self, event: TapEvent) -> None:
        for tap in self._taps:
            try:
                tap.on_response(event)
            except Exception:  # a door: a tap is not the client's business, the answer goes out
                logger.exception("tap failed")
