"""One HTTP/1.1 connection of the front: requests one after another, answers in their order.

Rules: a request is read while the one before is answered, and no further; nothing is answered while the peer does not
take what was said before; a large body is read once there is room for all of it (`Budget`); a request that breaks the
framing is answered once and the connection closed.
"""

from __future__ import annotations

from typing import Protocol

from holdfast.errors import HoldfastError, RequestError
from holdfast.serving import compression
from holdfast.serving.http1 import LARGE_BYTES, Body, HttpError, HttpParser, HttpRequest, Phase, expanded
from holdfast.serving.http1_heads import END, Head, Varied
from holdfast.serving.http2.shapes import RequestHead, Shape
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.backend import Backend, PeerFacts
from holdfast.serving.native.budget import Reservation
from holdfast.serving.native.call_notes import Note
from holdfast.serving.native.gather import PLACE_BYTES
from holdfast.serving.native.http2_peer import LANE_BYTES, Link
from holdfast.serving.native.http_answers import with_numbers
from holdfast.serving.native.http_codec import HttpCalls
from holdfast.serving.native.http_exchange import HttpExchange, context_of
from holdfast.serving.native.infer import Inference
from holdfast.serving.native.lane import Caller
from holdfast.serving.native.layouts import Layout
from holdfast.serving.native.long_work import LongWork, packed_room
from holdfast.serving.oip_json import error_body
from holdfast.serving.routes import (
    BINARY_TYPE,
    CLOSE,
    HEADER_LENGTH,
    HEADER_LENGTH_NAME,
    HttpResponse,
    failure,
    header_length_of,
)

MAX_AHEAD_BYTES = 65_536  # of pipelined requests: beyond that the socket is not read
MAX_OUT_BYTES = 262_144  # of answers before they are written: pipelined questions are shorter than their answers
_NO_HEAD = Head("", "", "", {})
# what the lane gets where HTTP/2 has a stream: here at most one request is under way, and nobody looks at it
_STREAM = Stream(0, (Shape(RequestHead("POST", "", "", "", {}, None, 0), b"", []), ()), 0, 0)


class ReadableLink(Link, Protocol):
    """A transport that can be told not to read."""

    def pause_reading(self) -> None:
        """Read no more for now."""

    def resume_reading(self) -> None:
        """Read again."""


class Http1Peer(Caller):
    """Requests out of a parser, into the routes; their answers, onto the wire."""

    def __init__(self, backend: Backend, link: ReadableLink, facts: PeerFacts, now_s: float) -> None:
        super().__init__(None, now_s)  # shared memory is not for the lane here
        self._backend = backend
        self._link = link
        self._facts = facts
        self._parser = HttpParser(backend.options.http1, memoise=backend.options.memoise, expands=False)
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._phase, self._phase_s = Phase.IDLE, now_s
        self._is_busy = self._is_over = self._has_eof = self._is_draining = False
        self._is_held = self._is_paused = False
        self._head, self._varied = _NO_HEAD, _NO_HEAD.first  # of the request under way
        self._body: Body = b""
        self._inference: Inference | LongWork[Body] | None = None  # under way
        self._room: Reservation | None = None  # for the large body that is being read

    def receive(self, data: bytes) -> None:
        """Bytes from the peer."""
        if self._is_over:
            return  # it was told so
        if not (self._is_busy or self._is_paused or self._out_bytes):
            whole = self._parser.whole(data)
            if whole is not None:
                self._begin(*whole)
                return
        self._parser.feed(data)
        self._advance()

    def receive_large(self, view: memoryview) -> None:
        """As `receive`, for so many bytes that those of tensors should be copied once. The view is not kept."""
        taken = 0 if self._is_over else self._parser.fill(view)
        if taken < len(view):
            self.receive(bytes(view[taken:]))
        else:
            self._advance()

    def flush(self) -> None:
        """Take up what is pipelined, and write what is to be sent."""
        if self._is_held or not self._parser.is_resting:
            self._advance()  # from here and not from an answer: a thousand pipelined requests would nest
        if self._out:
            data = b"".join(self._out)
            self._out.clear()
            self._out_bytes = 0
            self._link.write(data)
            if not self._parser.is_resting:
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
        self._note_phase()
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
        self._is_over, self._is_held = True, False
        self._give_back()
        if self._inference is not None:
            self._inference.dropped()
        # what it held goes now, and not when a collector finds the circle that a connection is
        self._parser.close()
        self._out.clear()
        self._out_bytes, self._body, self._inference = 0, b"", None

    @property
    def untaken_bytes(self) -> int:
        """Of answers that wait to be written."""
        return self._out_bytes

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
                self._put()
                return
            self._give_back()
            if request.head.coding == "identity":
                self._begin(request.head, request.varied, request.body)
            else:
                self._expand(request)
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

    def _put(self) -> None:
        """Give a large body its place, its tensors aligned, once there is room for it."""
        head, wanted = self._parser.head, self._parser.wanted_bytes
        has_room = self._room is None or self._room.is_held
        if head is None or wanted <= PLACE_BYTES or self._parser.has_place or not has_room:
            return
        if head.coding == "identity" and "content-length" in head.headers and HEADER_LENGTH in head.headers:
            try:
                at = header_length_of(head.headers) or 0
            except RequestError:
                return  # said once it is read
            if 0 < at < wanted:
                self._parser.put(self._backend.budget.buffers.take(wanted, at))

    def _give_back(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None

    def _note_phase(self) -> None:
        if self._parser.phase is not self._phase or self._phase is Phase.IDLE:
            self._phase = self._parser.phase
            self._phase_s = self._backend.clock.monotonic_s()

    def _expand(self, request: HttpRequest) -> None:
        """Make a compressed body what it was, here or elsewhere, and go on with it."""
        body, coding, max_bytes = request.body, request.head.coding, self._backend.options.http1.max_body_bytes

        def go_on(result: Body | Exception) -> None:
            if isinstance(result, HttpError):
                self._is_busy, self._inference = False, None
                self._refuse(result)
            elif isinstance(result, Exception):
                self.fail(None, result)
            else:
                self._begin(request.head, request.varied, result)

        self._is_busy = True
        self._head, self._varied = request.head, request.varied
        self._inference = work = LongWork(self._backend, lambda: expanded(body, coding, max_bytes), go_on)
        work.start(packed_room(len(body)))

    def _begin(self, head: Head, varied: Varied, body: Body) -> None:
        """Hand a request to the lane if it is a plain one, else take it the whole way."""
        self._is_busy = True
        self._head, self._varied, self._body = head, varied, body
        note: Note = head.note or self._noted(head)  # type: ignore[assignment]  # ours alone
        contents: bytes | None = None
        if note.http is not None and type(body) is bytes and len(body) <= LANE_BYTES:
            contents = note.http.contents(body)
        if contents is None:
            self.infer(_STREAM, body)
            return
        self.seen_s = self._backend.clock.monotonic_s()
        self._backend.lane.calls.append((self, _STREAM, contents, note))
        self._backend.tick.touch(self)

    def _noted(self, head: Head) -> Note:
        """Note of a head, once, whether requests behind it are plain ones that this caller may make."""
        backend = self._backend
        http: HttpCalls | None = None
        target = backend.routes.infer_target(head.method, head.path)
        is_lasting = head.first[1] >= 0 and head.coding == "identity"
        if target is not None and is_lasting and backend.options.memoise:
            try:
                json_bytes = header_length_of(head.headers)
            except RequestError:
                json_bytes = 0  # said on the whole way, as is all of a body that is one raw tensor
            if json_bytes != 0 and backend.rpc.may_infer(context_of(self._facts, head.headers)):
                http = HttpCalls(backend.http_codec, target, json_bytes or 0)
        head.note = note = Note(_STREAM.shape, is_plain=http is not None, http=http)
        return note

    # The lane's.

    def infer(self, stream: Stream, body: bytes | bytearray | memoryview) -> None:
        """The request under way, whatever it is, through decoder, queue, run and encoder."""
        head, backend = self._head, self._backend
        headers = head.headers_with(self._varied)
        exchange = HttpExchange(backend, self._facts, head.method, head.path, headers, self._respond)
        self._inference = exchange.start(self._body)

    def answer(self, stream: Stream, note: Note, layout: Layout | None, parts: tuple[bytes, ...], size: int) -> None:
        """The request under way with a whole answer of `size` octets; without a layout it is written out already."""
        if layout is not None and layout.wants_json:
            assert layout.answer is not None, "it is where the parts come from"
            try:
                first, body = with_numbers(layout.answer[0], parts)
            except HoldfastError as error:
                self.fail(stream, error)
                return
            parts, size = (first + END + body,), len(first) + len(END) + len(body)
        head, trace = self._head, self._varied[0] or self._head.trace
        may_shrink = size >= compression.MIN_BYTES and "accept-encoding" in head.headers
        if may_shrink or self._is_over or self._is_draining or not head.keep_alive:
            self._respond(self._response(parts))
            return
        self._is_busy, self._body = False, b""
        self._phase, self._phase_s = Phase.IDLE, self.seen_s
        self._out_bytes += size
        if trace:
            begin, _, rest = parts[0].partition(END)
            self._out += (begin, b"\r\ntraceparent: ", trace, END, rest)
            parts = parts[1:]
        self._out += parts

    def fail(self, stream: Stream | None, error: BaseException) -> None:
        """The request under way with what went wrong."""
        self._respond(self._backend.routes.finished(failure(error), self._head.headers_with(self._varied)))

    def _response(self, parts: tuple[bytes, ...]) -> HttpResponse:
        """An answer of the lane as the whole way makes it."""
        head, _, body = b"".join(parts).partition(END)
        name, _, value = head.decode().rpartition(": ")
        is_binary = name.endswith(HEADER_LENGTH_NAME)
        response = (
            HttpResponse(200, body, BINARY_TYPE, {HEADER_LENGTH_NAME: value}) if is_binary else HttpResponse(200, body)
        )
        return self._backend.routes.finished(response, self._head.headers_with(self._varied))

    def _respond(self, response: HttpResponse) -> None:
        self._is_busy, self._body = False, b""
        self._inference = None
        if self._is_over:
            return
        self._note_phase()
        keep_alive = self._head.keep_alive and not self._is_draining
        self._send(response, keep_alive=keep_alive, is_head=self._head.method == "HEAD")

    def _refuse(self, error: HttpError) -> None:
        self._backend.service.refusals.note(error)
        self._give_back()
        self._send(HttpResponse(error.status, error_body(str(error))), keep_alive=False, is_head=False)

    def _send(self, response: HttpResponse, *, keep_alive: bool, is_head: bool) -> None:
        if not keep_alive:
            self._is_over = True
        head = (response.head(*(() if keep_alive else (CLOSE,))) + "\r\n\r\n").encode("latin-1")
        body = b"" if is_head else response.body
        self._out += (head, body)
        self._out_bytes += len(head) + len(body)
        self._backend.tick.touch(self)
