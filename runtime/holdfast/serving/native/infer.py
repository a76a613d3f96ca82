"""One inference request on its way through the scheduler, whichever protocol it came by.

Rules: it counts as in flight from the door to its answer; the taps are told of every outcome, also of refusals;
a request whose client cancels it or leaves gives its place in the queue back, and a run for it alone is ended.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.errors import AbandonedError, HoldfastError, RequestError
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.grpc_wire import GrpcFault
from holdfast.serving.native.backend import Backend
from holdfast.serving.native.long_work import LongWork
from holdfast.serving.parameters import InferCall
from holdfast.serving.protocols import Pending

Answered = Callable[[InferCall, TensorResponse], None]
Refused = Callable[[BaseException], None]


class Inference:
    """Decodes, queues, and hands the answer on. One of `answered` and `refused` is called, once. Owns its stream."""

    __slots__ = ("_answered", "_backend", "_call", "_pending", "_refused", "_start_s", "_work", "begun_s")

    def __init__(self, backend: Backend, answered: Answered, refused: Refused) -> None:
        self._backend = backend
        self._answered = answered
        self._refused = refused
        self._call: InferCall | None = None
        self._work: LongWork[InferCall] | None = None  # the decoding, if that takes long
        self._pending: Pending | None = None
        self.begun_s: float | None = None  # the body is whole
        self._start_s = backend.clock.monotonic_s()

    def start(self, decode: Callable[[], InferCall], deadline_s: float | None, room_bytes: int = 0) -> None:
        """Take the request in, if there is room and it is one. room_bytes: of a decoding that may take long."""
        backend = self._backend
        try:
            backend.in_flight.enter()
        except HoldfastError as error:
            self._end(error)
            return
        self._work = LongWork(backend, decode, lambda made: self._decoded(made, deadline_s))
        self._work.start(room_bytes)

    def _decoded(self, made: InferCall | Exception, deadline_s: float | None) -> None:
        backend, self._work = self._backend, None
        if isinstance(made, Exception):
            backend.in_flight.leave()
            self._end(made)
            return
        self._call = made
        if made.timeout_s is not None:
            until_s = self._start_s + made.timeout_s
            deadline_s = until_s if deadline_s is None else min(deadline_s, until_s)
        self._pending = Pending(made.request, deadline_s, self._done, made.priority)
        backend.tick.add(self._pending)

    @property
    def is_queued(self) -> bool:
        """Whether its answer is still to come."""
        return self._pending is not None or self._work is not None

    def data(self, piece: bytes | memoryview) -> None:
        """Nothing: the body is whole."""

    def ended(self) -> None:
        """Nothing: it was before."""

    def dropped(self) -> None:
        """Nobody waits for the answer any more."""
        if self._work is not None:
            self._work.dropped()
            self._decoded(AbandonedError("the client left before its answer"), None)
        elif self._pending is not None:
            self._backend.tick.abandon(self._pending)

    def _done(self, answer: TensorResponse | HoldfastError) -> None:
        self._pending = None
        self._backend.in_flight.leave()
        if isinstance(answer, TensorResponse):
            assert self._call is not None  # it was decoded before it was queued
            self._tell(answer)
            self._answered(self._call, answer)
        else:
            self._end(answer)

    def _end(self, error: BaseException) -> None:
        told = RequestError(str(error)) if isinstance(error, GrpcFault) else error  # theirs, and not a failure of ours
        self._tell(told if isinstance(told, HoldfastError) else None)
        self._refused(error)

    def _tell(self, answer: TensorResponse | HoldfastError | None) -> None:
        service = self._backend.service
        if service.has_taps:
            request: TensorRequest | None = None if self._call is None else self._call.request
            service.tell(request, answer, self._backend.clock.monotonic_s() - self._start_s)
