"""The body of one HTTP/2 request as it comes in: gathered up to a bound, with more window where the budget allows.

Rules: what fits a stream's window comes without asking; a larger body waits for its part of the server's budget before
its peer may send on, and gives it back when it is handed over or the stream is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from holdfast.serving.grpc_wire import PREFIX_BYTES, message_size
from holdfast.serving.http1 import HttpError
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.budget import Budget, Reservation


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
        finish: Callable[[bytes | bytearray], None],
        *,
        is_grpc: bool,
        now_s: float,
    ) -> None:
        self.begun_s: float | None = now_s
        self._machine = machine
        self._stream = stream
        self._budget = budget
        self._max_bytes = max_bytes
        self._finish = finish
        self._is_grpc = is_grpc
        self._buffer = bytearray()
        self._reservation: Reservation | None = None

    def data(self, piece: bytes | memoryview) -> None:
        self._buffer += piece
        if self._reservation is None:
            total = self._total()
            if total > self._machine.limits.stream_window_bytes:
                more = total - self._machine.limits.stream_window_bytes
                self._reservation = self._budget.reserve(total, lambda: self._machine.grant(self._stream, more))

    def ended(self) -> None:
        self.begun_s = None
        body, self._buffer = self._buffer, bytearray()
        self.dropped()
        self._finish(body)

    def dropped(self) -> None:
        if self._reservation is not None:
            self._reservation.release()

    def _total(self) -> int:
        """How many octets there will be, as far as it is known."""
        if self._is_grpc:
            if len(self._buffer) < PREFIX_BYTES:
                return 0
            return PREFIX_BYTES + message_size(self._buffer, self._max_bytes)
        length = self._stream.head.content_length
        if length is None:
            length = self._max_bytes if len(self._buffer) * 2 > self._machine.limits.stream_window_bytes else 0
        if length > self._max_bytes or len(self._buffer) > self._max_bytes:
            raise HttpError(413, f"the body has more than the {self._max_bytes} bytes that are taken")
        return length
