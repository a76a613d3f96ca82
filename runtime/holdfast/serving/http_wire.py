"""HTTP/1.1 requests off a blocking socket, within time limits; the framing is `http1.py`'s.

Rules: the head must come within a time counted from its first byte, the body within another; silence between requests
ends the connection.
"""

from __future__ import annotations

import socket

from holdfast.clock import Clock
from holdfast.serving.http1 import HttpError, HttpLimits, HttpParser, HttpRequest, Phase

READ_BYTES = 65_536
DRAIN_BYTES = 1_048_576  # read and thrown away after a refusal, so that the peer gets to read it


class ConnectionClosed(Exception):
    """The peer closed the connection between requests, or stopped sending."""


class HttpReader:
    """Reads requests one after another from a blocking socket."""

    def __init__(self, connection: socket.socket, first: bytes, clock: Clock, limits: HttpLimits) -> None:
        self._connection = connection
        self._parser = HttpParser(limits)
        self._parser.feed(first)
        self._clock = clock
        self._limits = limits

    def next_request(self) -> HttpRequest:
        """The next request.

        Raises:
            ConnectionClosed: there is none.
            HttpError: it is malformed, too large or too slow.
        """
        parser, phase, deadline_s = self._parser, None, 0.0
        while (request := parser.next_request()) is None:
            if parser.owes_continue:
                parser.owes_continue = False
                self._connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if parser.phase is not phase:
                phase = parser.phase
                deadline_s = self._clock.monotonic_s() + self._timeout_s(phase)
            self._fill(deadline_s, phase)
        return request

    def drain(self) -> None:
        """Tell the peer that we are done, then read and forget what it still sends, bounded."""
        try:
            self._connection.shutdown(socket.SHUT_WR)
            self._connection.settimeout(1.0)
            left = DRAIN_BYTES
            while left > 0 and (data := self._connection.recv(READ_BYTES)):
                left -= len(data)
        except OSError:
            pass  # it is gone already

    def _timeout_s(self, phase: Phase) -> float:
        limits = self._limits
        if phase is Phase.IDLE:
            return limits.idle_timeout_s
        return limits.head_timeout_s if phase is Phase.HEAD else limits.body_timeout_s

    def _fill(self, deadline_s: float, phase: Phase | None) -> None:
        left_s = deadline_s - self._clock.monotonic_s()
        try:
            if left_s <= 0:
                raise TimeoutError
            self._connection.settimeout(left_s)
            data = self._connection.recv(READ_BYTES)
        except TimeoutError as error:
            if phase is Phase.IDLE:
                raise ConnectionClosed from error
            raise HttpError(408, "the request came too slowly") from error
        if not data:
            raise ConnectionClosed
        self._parser.feed(data)
