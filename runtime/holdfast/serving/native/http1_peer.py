"""One HTTP/1.1 connection of the front: requests one after another, answers in their order.

Rules: a request is read while the one before is answered, and no further; nothing is answered while the peer does not
take what was said before; a large body is read once there is room for all of it (`Budget`); a request that breaks the
framing is answered once and the connection closed.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Protocol

from holdfast.serving.http1 import LARGE_BYTES, HttpError, HttpParser, HttpRequest, Phase
from holdfast.serving.native.backend import Backend, PeerFacts
from holdfast.serving.native.budget import Reservation
from holdfast.serving.native.http2_peer import Link
from holdfast.serving.native.http_exchange import HttpExchange
from holdfast.serving.native.infer import Inference
from holdfast.serving.oip_json import error_body
from holdfast.serving.routes import HttpResponse

MAX_AHEAD_BYTES = 65_536  # of pipelined requests: beyond that the socket is not read
MAX_OUT_BYTES = 262_144  # of answers before they are written: pipelined questions are shorter than their answers


class ReadableLink(Link, Protocol):
    """A transport that can be told not to read."""

    def pause_reading(self) -> None:
        """Read no more for now."""

    def resume_reading(self) -> None:
        """Read again."""


class Http1Peer:
    """Requests out of a parser, into the routes; their answers, onto the wire."""

    def __init__(self, backend: Backend, link: ReadableLink, facts: PeerFacts, now_s: float) -> None:
        self._backend = backend
        self._link = link
        self._facts = facts
        self._parser = HttpParser(backend.options.http1, memoise=backend.options.memoise)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._phase, self._phase_s = Phase.IDLE, now_s
        self._is_busy = self._is_over = self._has_eof = self._is_draining = False
        self._is_held = self._is_paused = False
        self._inference: Inference | None = None  # under way
        self._room: Reservation | None = None  # for the large body that is being read

    def receive(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._is_over:
            return  # it was told so
        self._parser.feed(data)
        self._advance()

    def flush(self) -> None:
        """Take up what is pipelined, and write what is to be sent."""
        self._advance()  # from here and not from an answer: a thousand pipelined requests would nest
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._link.write(data)
            self._advance()  # what had to wait for room
        if not self._out and (self._is_over or (self._has_eof and not self._must_wait)):
            self._link.close()

    def pause(self) -> None:
        """The transport takes no more for now: nothing more is answered, and soon nothing more is read."""
        self._is_paused = True
        self._hold()

    def resume(self) -> None:
        """The transport takes more."""
        self._is_paused = False
        self._backend.tick.touch(self)

    def drain(self) -> None:
        """Close now if idle, else after the answer under way."""
        self._is_draining = True
        if not self._is_busy:
            self._is_over = True
        self._backend.tick.touch(self)

    def eof(self) -> bool:
        """The peer sends no more. Whether it still waits for answers: in HTTP/1 one may, nobody can see that."""
        self._has_eof = True
        self._backend.tick.touch(self)
        return True

    def lost(self) -> None:
        """The connection is gone."""
        self._is_over = True
        self._give_back()
        if self._inference is not None:
            self._inference.dropped()

    def is_overdue(self, now_s: float) -> bool:
        """Whether the peer took too long; a slow request is told so first."""
        if self._is_busy or self._is_over or self._is_paused:
            return False
        limits = self._backend.options.http1
        waited_s = now_s - self._phase_s
        if self._phase is Phase.IDLE:
            return waited_s > limits.idle_timeout_s
        if waited_s > (limits.head_timeout_s if self._phase is Phase.HEAD else limits.body_timeout_s):
            self._refuse(HttpError(408, "the request came too slowly"))
        return False

    def _advance(self) -> None:
        """Take requests out of the parser until one is under way, nobody takes answers, or more bytes are needed."""
        self._take_up()
        self._hold()

    def _take_up(self) -> None:
        while not self._must_wait and not self._is_over:
            try:
                request = self._parser.next_request()
            except HttpError as error:
                self._refuse(error)
                return
            if self._parser.owes_continue:
                self._parser.owes_continue = False
                if request is None:
                    self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
                    self._backend.tick.touch(self)
            if request is None:
                self._note_phase()
                self._claim()
                return
            self._give_back()
            self._is_busy = True
            self._begin(request)
        self._note_phase()

    @property
    def _must_wait(self) -> bool:
        """Whether a request that is whole has to wait."""
        return self._is_busy or self._is_paused or self._out_bytes > MAX_OUT_BYTES

    def _hold(self) -> None:
        """Read no further ahead than that; but read on where the rest of a request is all that is missing."""
        is_ahead = self._must_wait and self._parser.held_bytes > MAX_AHEAD_BYTES
        is_held = is_ahead or (self._room is not None and not self._room.is_held)
        if is_held != self._is_held and not self._is_over:
            self._is_held = is_held
            (self._link.pause_reading if is_held else self._link.resume_reading)()

    def _claim(self) -> None:
        """Ask for room if the body under way is a large one."""
        wanted = self._parser.wanted_bytes
        if wanted > LARGE_BYTES and self._room is None:
            self._room = self._backend.budget.reserve(wanted, lambda: self._backend.tick.touch(self))

    def _give_back(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None

    def _note_phase(self) -> None:
        if self._parser.phase is not self._phase or self._phase is Phase.IDLE:
            self._phase = self._parser.phase
            self._phase_s = self._backend.clock.monotonic_s()

    def _begin(self, request: HttpRequest) -> None:
        is_head = request.method == "HEAD"

        def respond(response: HttpResponse) -> None:
            self._is_busy = False
            self._inference = None
            if self._is_over:
                return
            keep_alive = request.keep_alive and not self._is_draining
            self._send(response, keep_alive=keep_alive, is_head=is_head)

        exchange = HttpExchange(self._backend, self._facts, request.method, request.path, request.headers, respond)
        self._inference = exchange.start(request.body)

    def _refuse(self, error: HttpError) -> None:
        self._backend.service.refusals.note(error)
        self._give_back()
        self._send(HttpResponse(error.status, error_body(str(error))), keep_alive=False, is_head=False)

    def _send(self, response: HttpResponse, *, keep_alive: bool, is_head: bool) -> None:
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        if response.body:
            lines.append(f"Content-Type: {response.content_type}")
        lines.append(f"Content-Length: {len(response.body)}")
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if not keep_alive:
            lines.append("Connection: close")
            self._is_over = True
        head, body = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"), b"" if is_head else response.body
        self._out += (head, body)
        self._out_bytes += len(head) + len(body)
        self._backend.tick.touch(self)
