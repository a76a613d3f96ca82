"""What is said on the streams of one connection: whole answers, parts of long ones, and what went wrong.

Rules: a stream gets one status, the last thing said on it; whatever went wrong becomes words in `status.py`. Nothing is
written here: the machine makes frames, and the connection is told that it has something to send.
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.serving import grpc_wire
from holdfast.serving.grpc_wire import PREFIX_BYTES, GrpcFault, framed_prefix, is_grpc, status_trailers
from holdfast.serving.http1 import HttpError
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.hpack import encode
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.call_notes import PLAIN, TRACED
from holdfast.serving.oip_json import error_body
from holdfast.serving.routes import HttpResponse
from holdfast.serving.status import status_of
from holdfast.serving.trace_context import TRACEPARENT, is_traceparent

CODE_KEY = "holdfast-code"  # trailing metadata: the stable code of the error


class Replies:
    """Answers into the machine. `touch`: the connection has something to send."""

    def __init__(self, machine: Http2Connection, touch: Callable[[], None]) -> None:
        self._machine = machine
        self._touch = touch
        self._begun: set[int] = set()  # streams of long calls whose head was sent

    @property
    def begun(self) -> tuple[int, ...]:
        """Streams on which a part was sent, and no status yet."""
        return tuple(self._begun)

    def forget(self, stream: Stream) -> None:
        """The stream is gone."""
        self._begun.discard(stream.id)

    def message(self, stream: Stream, message: bytes) -> None:
        """The one message of a call, and OK."""
        parts, size = (framed_prefix(len(message)), message), PREFIX_BYTES + len(message)
        trace = stream.head.headers.get(TRACEPARENT, "")
        if is_traceparent(trace):
            self._machine.answer(stream, TRACED, parts, size, trace.encode())
        else:
            self._machine.answer(stream, PLAIN, parts, size)
        self._touch()

    def part(self, stream: Stream, message: bytes) -> None:
        """One message of a long call."""
        if stream.id not in self._begun:
            self._begun.add(stream.id)
            self._machine.send_headers(stream, grpc_wire.HEAD, end=False)
        self._machine.send_data(stream, framed_prefix(len(message)) + message)
        self._touch()

    def end(self, stream: Stream) -> None:
        """OK, which ends a long call."""
        alone = stream.id not in self._begun
        self._begun.discard(stream.id)
        self._machine.send_headers(stream, status_trailers("OK", "", {}, alone=alone), end=True)
        self._touch()

    def failure(self, stream: Stream, error: BaseException) -> None:
        """What went wrong, in the words of whoever asked."""
        if not is_grpc(stream.head.headers.get("content-type")):
            self.response(stream, _http_failure(error))
            return
        alone = stream.id not in self._begun
        self._begun.discard(stream.id)
        if isinstance(error, GrpcFault):
            trailers = status_trailers(error.status, str(error), {}, alone=alone)
        else:
            status = status_of(error)
            trailers = status_trailers(status.grpc, status.text, {CODE_KEY: status.code}, alone=alone)
        self._machine.send_headers(stream, trailers, end=True)
        self._touch()

    def response(self, stream: Stream, response: HttpResponse) -> None:
        """An answer to an HTTP request."""
        fields = [(":status", str(response.status)), ("content-length", str(len(response.body)))]
        if response.body:
            fields.append(("content-type", response.content_type))
        fields += [(name.lower(), value) for name, value in response.headers.items()]
        is_head = stream.head.method == "HEAD" or not response.body
        self._machine.send_headers(stream, encode(fields), end=is_head)
        if not is_head:
            self._machine.send_data(stream, response.body, end=True)
        self._touch()


def _http_failure(error: BaseException) -> HttpResponse:
    if isinstance(error, HttpError):
        return HttpResponse(error.status, error_body(str(error)))
    if isinstance(error, GrpcFault):
        return HttpResponse(408, error_body(str(error)))
    status = status_of(error)
    return HttpResponse(status.http, error_body(status.text), headers={"Holdfast-Code": status.code})
