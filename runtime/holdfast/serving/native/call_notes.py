"""What is known of calls before their messages are read: from the shapes of their heads, and timeouts seen before."""

from __future__ import annotations

import math
from typing import Final

from holdfast.serving import grpc_wire
from holdfast.serving.grpc_wire import GrpcFault, timeout_s
from holdfast.serving.http2.hpack import encode
from holdfast.serving.http2.sender import AnswerForm
from holdfast.serving.http2.shapes import TRACE_BYTES, TRACEPARENT, Shape
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.http_codec import HttpCalls
from holdfast.serving.trace_context import is_traceparent

MAX_TIMEOUTS: Final = 256  # that are remembered

TIMEOUT: Final = "grpc-timeout"
_TRACE_PREFIX: Final = encode(((TRACEPARENT, "0" * TRACE_BYTES),))[:-TRACE_BYTES]
PLAIN: Final = AnswerForm(grpc_wire.HEAD, grpc_wire.OK_TRAILERS)
TRACED: Final = AnswerForm(grpc_wire.HEAD, grpc_wire.OK_TRAILERS + _TRACE_PREFIX, TRACE_BYTES)


class Note:
    """What is known of all calls of one shape. `timeout_at` and `trace_at`: places among the varying values, or -1.

    allowed_s: the timeout that does not vary. trace: the traceparent that does not vary, or none.
    http: what they are if they are no messages of gRPC, but requests over HTTP/1.1.
    """

    __slots__ = ("allowed_s", "http", "is_plain", "timeout_at", "trace", "trace_at")

    def __init__(self, shape: Shape, *, is_plain: bool, http: HttpCalls | None = None) -> None:
        self.http = http
        names, fixed = shape.names, shape.base.headers
        self.timeout_at = names.index(TIMEOUT) if TIMEOUT in names else -1
        try:
            self.allowed_s = timeout_s(fixed[TIMEOUT]) if TIMEOUT in fixed else math.inf
        except GrpcFault:
            is_plain = False  # said on the whole way
            self.allowed_s = 0.0
        self.is_plain = is_plain
        self.trace_at = shape.traced_at
        trace = fixed.get(TRACEPARENT, "")
        self.trace = trace.encode() if is_traceparent(trace) else b""


class Timeouts:
    """How long calls may take; of values that vary, by their octets. On one thread."""

    def __init__(self) -> None:
        self._known: dict[bytes, float] = {}

    def allowed_s(self, stream: Stream, note: Note) -> float:
        """How long a call may take; nothing if its timeout is malformed, which is said on the whole way."""
        if note.timeout_at < 0:
            return note.allowed_s
        value = stream.values[note.timeout_at]
        allowed_s = self._known.get(value)
        if allowed_s is None:
            try:
                allowed_s = timeout_s(value.decode("latin-1"))
            except GrpcFault:
                return 0.0
            if len(self._known) >= MAX_TIMEOUTS:
                self._known.clear()
            self._known[value] = allowed_s
        return allowed_s
