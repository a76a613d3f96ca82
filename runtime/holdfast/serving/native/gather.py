"""The body of one HTTP/2 request as it comes in: gathered up to a bound, with more window where the budget allows.

Rules: what fits a stream's window comes without asking; a larger body waits for its part of the server's budget before
its peer may send on, and gives it back when it is handed over or the stream is gone. A large message is written where
its first tensor is aligned as ONNX Runtime wants it: otherwise it would be copied once more. The stream is told this
place, so that what comes next is copied there from what was read, and nowhere before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from holdfast.serving.grpc_wire import NOT_AS_ANNOUNCED, PREFIX_BYTES, GrpcFault, message_size
from holdfast.serving.http1 import HttpError
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.budget import Budget, Reservation

PLACE_BYTES = 65_536  # smaller messages are gathered as they come
HEAD_BYTES = 4_096  # of a message, shown to whoever says what of it is to be aligned


class Owner(Protocol):
    """What a stream's events go to. Raises what is wrong; the connection answers it and lets go."""

    begun_s: float | None  # since when a body is under way; None while none is

    def data(self, piece: bytes | memoryview) -> None:
        """A piece of the body."""

    def ended(self) -> None:
        """The body is whole."""

    def dropped(self) -> None:
        """The stream is gone, or was answered before its body was whole."""


class Gather:
    """Gathers a body, then calls `finish` with it. Raises GrpcFault and HttpError for bodies that are too large."""

    def __init__(
        self,
        machine: Http2Connection,
        stream: Stream,
        budget: Budget,
        max_bytes: int,
        finish: Callable[[bytes | bytearray | memoryview], None],
        *,
        is_grpc: bool,
        now_s: float,
        align: Callable[[bytes, int], int] = lambda head, size: 0,
    ) -> None:
        """align: of a message's begin and size, which octet of it is to be aligned."""
        self.begun_s: float | None = now_s
        self._machine = machine
        self._stream = stream
        self._budget = budget
        self._max_bytes = max_bytes
        self._finish = finish
        self._is_grpc = is_grpc
        self._buffer = bytearray()
        self._reservation: Reservation | None = None
        self._align = align

    def data(self, piece: bytes | memoryview) -> None:
        stream = self._stream
        if stream.place is None and not self._buffer and self._reservation is None:
            self._reserve(piece)  # before anything is copied: a large message then goes to its place at once
        if stream.place is not None:
            end = stream.filled + len(piece)
            if end > len(stream.place):
                raise GrpcFault("INTERNAL", NOT_AS_ANNOUNCED)
            stream.place[stream.filled : end] = piece
            stream.filled = end
            return
        self._buffer += piece
        if self._reservation is None:
            self._reserve(self._buffer)

    def ended(self) -> None:
        self.begun_s = None
        stream = self._stream
        body = self._buffer if stream.place is None else stream.place[: stream.filled]
        self._buffer = bytearray()
        self.dropped()
        self._finish(body)

    def _reserve(self, begin: bytes | bytearray | memoryview) -> None:
        """Ask for memory, if `begin`, all that is known of the body, says that it is large."""
        total = self._total(begin)
        if total > self._machine.limits.stream_window_bytes:
            head = bytes(begin[:HEAD_BYTES])
            self._reservation = self._budget.reserve(total, lambda: self._granted(total, head))
        elif total > PLACE_BYTES and self._is_grpc:
            self._put(total, bytes(begin[:HEAD_BYTES]))

    def _granted(self, total: int, head: bytes) -> None:
        """There is memory for the whole."""
        self._machine.grant(self._stream, total - self._machine.limits.stream_window_bytes)
        if self._is_grpc:
            self._put(total, head)

    def _put(self, total: int, head: bytes) -> None:
        """Give the body its place. Not if it is longer than announced, which whoever takes it will say."""
        if len(self._buffer) <= total:
            place = self._budget.buffers.take(total, self._align(head, total))
            place[: len(self._buffer)] = self._buffer
            self._stream.place, self._stream.filled = place, len(self._buffer)
            self._buffer = bytearray()

    def dropped(self) -> None:
        self._stream.place = None
        if self._reservation is not None:
            self._reservation.release()

    def _total(self, begin: bytes | bytearray | memoryview) -> int:
        """How many octets there will be, as far as it is known."""
        if self._is_grpc:
            if len(begin) < PREFIX_BYTES:
                return 0
            return PREFIX_BYTES + message_size(begin[:PREFIX_BYTES], self._max_bytes)
        length = self._stream.head.content_length
        if length is None:
            length = self._max_bytes if len(begin) * 2 > self._machine.limits.stream_window_bytes else 0
        if length > self._max_bytes or len(begin) > self._max_bytes:
            raise HttpError(413, f"the body has more than the {self._max_bytes} bytes that are taken")
        return length
