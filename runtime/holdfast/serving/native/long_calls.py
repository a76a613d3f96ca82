"""gRPC calls with more than one message: streams, answered message by message in order, and watches.

Rules: a message of a stream is answered on another thread, one at a time, and what was read is granted again when its
answer is made, so that a peer cannot queue more than a window; none is answered while too many answers wait to be
taken, for an answer may be a thousand times its question; an idle one costs memory but no thread.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from holdfast.errors import HoldfastError
from holdfast.serving.grpc_wire import GrpcFault, MessageReader, unary_message
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.backend import Backend
from holdfast.serving.native.budget import Reservation
from holdfast.serving.rpc import CallContext, StreamCall, WatchCall

WATCH_BACKLOG_BYTES = 65_536  # of a watcher that reads nothing: then it is ended
MAX_WATCHED_BYTES = 65_536  # of the message that says what to watch
STREAM_BACKLOG_BYTES = 1_048_576  # of answers on a connection that wait: then its streams wait too


class Closer(Protocol):
    """The connection's part in a long call."""

    def send_message(self, stream: Stream, message: bytes) -> None:
        """One message, after the head if it is the first."""

    def close_call(self, stream: Stream, error: BaseException | None) -> None:
        """The status that ends the call; OK without an error."""

    def hold(self, call: StreamExchange) -> None:
        """Tell it to go on once no more than STREAM_BACKLOG_BYTES of answers wait."""


class StreamExchange:
    """A call of many messages each way."""

    def __init__(
        self,
        backend: Backend,
        closer: Closer,
        machine: Http2Connection,
        stream: Stream,
        call: StreamCall,
        context: CallContext,
    ) -> None:
        self.begun_s: float | None = None
        self._backend = backend
        self._closer = closer
        self._machine = machine
        self._stream = stream
        self._call = call
        self._context = replace(context, on_leave=self._on_leave)
        self._leave: Callable[[], None] | None = None
        self._encoding = stream.head.headers.get("grpc-encoding")
        self._reader = MessageReader(backend.options.max_message_bytes)
        self._waiting: deque[bytes] = deque()
        self._read_bytes = 0  # received and not granted again
        self._reservation: Reservation | None = None
        self._is_busy = self._is_last = self._is_over = False
        backend.long_calls.enter()

    def data(self, piece: bytes | memoryview) -> None:
        self._read_bytes += len(piece)
        messages = self._reader.feed(piece)
        if messages and self._reservation is not None:
            self._reservation.release()
            self._reservation = None
        self._waiting += messages
        self.begun_s = None if self._reader.is_between else self._backend.clock.monotonic_s()
        wanted = self._reader.wanted_bytes - self._stream.recv_window
        if wanted > 0 and self._reservation is None and not self._waiting and not self._is_busy:
            self._reservation = self._backend.budget.reserve(
                self._reader.wanted_bytes, lambda: self._machine.grant(self._stream, wanted)
            )
            self._read_bytes -= wanted
        self._next()

    def ended(self) -> None:
        self._is_last = True
        if not self._reader.is_between:
            raise GrpcFault("INTERNAL", "the stream ended inside a message")
        self._next()

    def dropped(self) -> None:
        if not self._is_over:
            self._is_over = True
            if self._leave is not None:
                self._leave()
            self._backend.long_calls.leave()
            self._waiting.clear()
            if self._reservation is not None:
                self._reservation.release()

    def _on_leave(self, leave: Callable[[], None] | None) -> None:
        """On another thread: what ends the message under way, from now on."""
        self._leave = leave
        if leave is not None and self._is_over:
            leave()

    def go_on(self) -> None:
        """Some of the answers were taken."""
        self._next()

    def _next(self) -> None:
        if self._is_busy or self._is_over:
            return
        if self._waiting:
            if self._machine.unsent_bytes > STREAM_BACKLOG_BYTES:
                self._closer.hold(self)
                return
            self._is_busy = True
            self._backend.executor.submit(self._answer, self._waiting.popleft())
        elif self._is_last:
            self.dropped()
            self._closer.close_call(self._stream, None)
        elif self._read_bytes > 0:
            self._machine.grant(self._stream, self._read_bytes)
            self._read_bytes = 0

    def _answer(self, message: bytes) -> None:
        """On another thread; `message` with its prefix."""
        try:
            asked = bytes(unary_message(message, self._encoding, self._backend.options.max_message_bytes))
            answer: bytes | Exception = self._call.answer(asked, self._context)
        except Exception as error:  # noqa: BLE001  # the rpc edge; the status is made on the loop's thread
            answer = error
        self._backend.tick.post(lambda: self._answered(answer))

    def _answered(self, answer: bytes | Exception) -> None:
        self._is_busy = False
        if self._is_over:
            return
        if isinstance(answer, Exception):
            self.dropped()
            self._closer.close_call(self._stream, answer)
            return
        self._closer.send_message(self._stream, answer)
        self._next()


class WatchExchange:
    """A call of one message in and many out."""

    def __init__(
        self,
        backend: Backend,
        closer: Closer,
        machine: Http2Connection,
        stream: Stream,
        call: WatchCall,
        context: CallContext,
    ) -> None:
        self.begun_s: float | None = backend.clock.monotonic_s()
        self._backend = backend
        self._closer = closer
        self._machine = machine
        self._stream = stream
        self._call = call
        self._context = context
        self._body = bytearray()
        self._end: Callable[[], None] | None = None
        self._is_over = False
        backend.long_calls.enter()

    def data(self, piece: bytes | memoryview) -> None:
        self._body += piece

    def ended(self) -> None:
        self.begun_s = None
        encoding = self._stream.head.headers.get("grpc-encoding")
        message = unary_message(self._body, encoding, MAX_WATCHED_BYTES)
        self._end = self._call.watch(bytes(message), self._context, self._send)

    def dropped(self) -> None:
        if self._is_over:
            return
        self._is_over = True
        self._backend.long_calls.leave()
        if self._end is not None:
            self._end()

    def _send(self, message: bytes) -> None:
        """On any thread."""
        self._backend.tick.post(lambda: self._sent(message))

    def _sent(self, message: bytes) -> None:
        if self._is_over:
            return
        if self._machine.unsent_bytes > WATCH_BACKLOG_BYTES:
            self.dropped()
            self._closer.close_call(self._stream, HoldfastError("the watcher reads too slowly"))
            return
        self._closer.send_message(self._stream, message)
