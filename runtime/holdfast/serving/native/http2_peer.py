"""One HTTP/2 connection of the front: gRPC calls and HTTP requests over its streams.

Rules: a stream's fault is answered on that stream; whatever a call raises leaves through `status.py`. This is one of
the three doors where unknown errors are caught (the rpc edge).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from holdfast.errors import OverloadedError
from holdfast.inference.tensors import TensorResponse
from holdfast.serving import grpc_wire
from holdfast.serving.grpc_wire import (
    PREFIX_BYTES,
    GrpcFault,
    is_grpc,
    timeout_s,
    unary_message,
)
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.shapes import Shape
from holdfast.serving.http2.stream import Event, Kind, Stream
from holdfast.serving.native.backend import Backend, PeerFacts
from holdfast.serving.native.call_notes import PLAIN, TRACED, Note
from holdfast.serving.native.gather import Gather, Owner
from holdfast.serving.native.http_exchange import HttpExchange, context_of
from holdfast.serving.native.infer import Inference
from holdfast.serving.native.lane import Caller
from holdfast.serving.native.layouts import Layout
from holdfast.serving.native.long_calls import STREAM_BACKLOG_BYTES, StreamExchange, WatchExchange
from holdfast.serving.native.long_work import packed_room, parsed_room
from holdfast.serving.native.replies import Replies
from holdfast.serving.parameters import InferCall
from holdfast.serving.routes import HttpResponse
from holdfast.serving.rpc import MODEL_INFER, StreamCall, UnaryCall

MAX_EXPANDED_BYTES = 1_048_576  # of calls but ModelInfer that come compressed: none of them is long
LANE_BYTES = 65_536  # of a body: larger ones are not copied once more


Body = bytes | bytearray | memoryview


class Link(Protocol):
    """The transport, as far as a peer needs it."""

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent."""

    def close(self) -> None:
        """Close when everything is sent."""


class Http2Peer(Caller):
    """Events of one machine, into calls; their answers, into the machine."""

    def __init__(self, backend: Backend, link: Link, facts: PeerFacts, now_s: float) -> None:
        super().__init__(backend.rpc.regions_for(is_local=facts.is_local, is_admin=facts.is_admin), now_s)
        self._backend = backend
        self._link = link
        self._facts = facts
        self.machine = Http2Connection(backend.options.http2, now_s, memoise=backend.options.memoise)
        self._owners: dict[int, Owner] = {}  # streams that wait for more than one answer, or for their body
        self._held: set[StreamExchange] = set()  # streams that wait until their peer has taken some answers
        self._replies = Replies(self.machine, lambda: backend.tick.touch(self))
        self._sent_s = self._framed_s = now_s
        self._is_draining = self._has_eof = False

    def receive(self, data: bytes) -> None:
        """Bytes from the peer."""
        backend, machine, whole = self._backend, self.machine, Kind.WHOLE
        now_s = self.seen_s = backend.clock.monotonic_s()
        calls = backend.lane.calls if not machine.is_full else None
        max_bytes = backend.options.max_message_bytes + PREFIX_BYTES
        for kind, stream, piece in machine.receive(data, now_s):
            if kind is whole and calls is not None and type(piece) is bytes and len(piece) <= max_bytes:
                note: Note = stream.shape.note or self._noted(stream.shape)  # type: ignore[assignment]  # ours alone
                if note.is_plain:
                    calls.append((self, stream, piece, note))
                    continue
            self._on_event(kind, stream, piece)
        if not machine.is_mid_frame:
            self._framed_s = now_s
        if machine.faults:
            for fault in machine.faults:
                backend.service.refusals.note(fault)
            machine.faults.clear()
        if machine.is_ended:
            self._end_calls()
        self._backend.tick.touch(self)

    def receive_large(self, view: memoryview) -> None:
        """As `receive`, for so many bytes that those of tensors should be copied once. The view is not kept."""
        at, size = self._fill(view), len(view)
        while at < size:
            cut = at + self.machine.until_filling(view[at:])
            self.receive(bytes(view[at:cut]))
            at = cut + self._fill(view[cut:])
            if at == cut:
                break
        if at < size:
            self.receive(bytes(view[at:]))

    def _fill(self, view: memoryview) -> int:
        machine = self.machine
        events: list[Event] = []
        taken = machine.fill(view, events)
        if taken:
            self.seen_s = self._backend.clock.monotonic_s()
            if not machine.is_mid_frame:
                self._framed_s = self.seen_s
            for kind, stream, piece in events:
                self._on_event(kind, stream, piece)
            if machine.has_output:
                self._backend.tick.touch(self)
        return taken

    def flush(self) -> None:
        """Write what is to be sent."""
        machine = self.machine
        while data := machine.take():
            self._link.write(data)
            self._sent_s = self.seen_s
        if self._held and machine.unsent_bytes <= STREAM_BACKLOG_BYTES:
            held, self._held = self._held, set()
            for call in held:
                call.go_on()
        is_answered = (machine.is_drained or self._has_eof) and not machine.streams
        if machine.is_ended or is_answered or (self._has_eof and machine.is_blocked):  # nobody opens those windows
            self._link.close()

    def pause(self) -> None:
        self.machine.pause()

    def resume(self) -> None:
        self.machine.resume()
        self._backend.tick.touch(self)

    def drain(self) -> None:
        """Take no more requests once the peer knows; close after the last answer."""
        self._is_draining = True
        self.machine.drain()
        for stream_id in self._replies.begun:  # watches have no last answer of their own
            stream = self.machine.streams.get(stream_id)
            owner = self._owners.get(stream_id)
            if stream is not None and isinstance(owner, WatchExchange):
                self._drop(stream)
                self.close_call(stream, None)
        self._backend.tick.touch(self)

    def eof(self) -> bool:
        """The peer sends no more: it has left, and its runs are ended. Whether answers are still to be told."""
        self._has_eof = True
        for stream in list(self.machine.streams.values()):
            owner = self._owners.get(stream.id)
            if isinstance(owner, Inference):
                owner.dropped()
            elif owner is not None or not stream.remote_ended:
                self._drop(stream)
                self.machine.reset(stream, ErrorCode.CANCEL)
        self._backend.tick.touch(self)
        return bool(self.machine.streams)

    def lost(self) -> None:
        """The connection is gone."""
        self._end_calls()
        self.machine.close()  # what it held goes now, and not when a collector finds the circle that a connection is

    def _end_calls(self) -> None:
        owners, self._owners = self._owners, {}
        self._held.clear()
        for owner in owners.values():
            owner.dropped()

    @property
    def untaken_bytes(self) -> int:
        """Of answers that wait for the peer, before they are written."""
        return self.machine.unsent_bytes

    @property
    def taken_s(self) -> float:
        """When something was written last."""
        return self._sent_s

    def is_overdue(self, now_s: float) -> bool:
        """Whether the peer took too long for anything; the connection is then closed."""
        options, machine = self._backend.options, self.machine
        if machine.is_mid_frame and now_s - self._framed_s > options.frame_timeout_s:
            return True
        if machine.unsent_bytes and now_s - self._sent_s > options.stalled_timeout_s:
            return True
        for stream_id, owner in list(self._owners.items()):
            if owner.begun_s is not None and now_s - owner.begun_s > options.body_timeout_s:
                self.fail(machine.streams.get(stream_id), GrpcFault("DEADLINE_EXCEEDED", "the request came too slowly"))
        if machine.streams:
            return False
        if self._is_draining:
            machine.close_for_new()  # the peer had a whole sweep to answer
            self._backend.tick.touch(self)
        elif now_s - self.seen_s > options.idle_timeout_s:
            self.drain()
        return False

    # Requests.

    def _on_event(self, kind: Kind, stream: Stream, piece: bytes | memoryview) -> None:
        try:
            if kind is Kind.BEGUN:
                self._begin(stream)
            elif kind is Kind.WHOLE:
                owner = self._begin(stream)
                if owner is not None:
                    if len(piece):
                        owner.data(piece)
                    self._end(stream, owner)
            else:
                owner = self._owners.get(stream.id)
                if owner is None:
                    return
                if kind is Kind.DATA:
                    owner.data(piece)
                elif kind is Kind.ENDED:
                    self._end(stream, owner)
                else:
                    self._drop(stream)
        except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
            self.fail(stream, error)

    def _begin(self, stream: Stream) -> Owner | None:
        options, now_s = self._backend.options, self.seen_s
        if self.machine.is_full:
            raise OverloadedError("answers to this connection are not taken; read them first")
        note = self._note_of(stream.shape)
        if note.is_plain and self._backend.lane.timeouts.allowed_s(stream, note) > 0:  # 0: it may be malformed
            owner: Owner = self._gather(stream, lambda body: self._ask(stream, body, note))
        elif not is_grpc(stream.head.headers.get("content-type")):
            owner = Gather(
                self.machine, stream, self._backend.budget, options.max_message_bytes,
                lambda body: self._http(stream, bytes(body)), is_grpc=False, now_s=now_s,
            )  # fmt: skip
        else:
            owner = self._begin_call(stream)
        self._owners[stream.id] = owner
        return owner

    def _begin_call(self, stream: Stream) -> Owner:
        if stream.head.method != "POST":
            raise GrpcFault("UNIMPLEMENTED", "a gRPC call is a POST")
        call = self._backend.rpc.find(stream.head.path)
        if call is None:
            raise GrpcFault("UNIMPLEMENTED", "Method not found!")
        context = context_of(self._facts, stream.head.headers, self._deadline_s(stream.head.headers))
        if isinstance(call, StreamCall):
            return StreamExchange(self._backend, self, self.machine, stream, call, context)
        if not isinstance(call, UnaryCall):
            return WatchExchange(self._backend, self, self.machine, stream, call, context)

        def finish(body: Body) -> None:
            if stream.head.path == MODEL_INFER:
                self._ask(stream, body, self._note_of(stream.shape))
            else:
                self._unary(stream, call, body)

        return self._gather(stream, finish)

    def _gather(self, stream: Stream, finish: Callable[[Body], None]) -> Gather:
        backend = self._backend
        return Gather(
            self.machine, stream, backend.budget, backend.options.max_message_bytes, finish,
            is_grpc=True, now_s=self.seen_s, align=backend.codec.first_raw,
        )  # fmt: skip

    def _ask(self, stream: Stream, body: Body, note: Note) -> None:
        """A ModelInfer call whose body is whole."""
        if not note.is_plain:
            self.infer(stream, body)
            return
        if len(body) <= LANE_BYTES:
            self._backend.lane.calls.append((self, stream, bytes(body), note))
        else:
            self._backend.lane.large.append((self, stream, body, note))
        self._backend.tick.touch(self)

    def _end(self, stream: Stream, owner: Owner) -> None:
        if isinstance(owner, Gather):
            del self._owners[stream.id]
        owner.ended()

    def _drop(self, stream: Stream) -> None:
        self._release(stream)
        self._replies.forget(stream)

    def _release(self, stream: Stream) -> None:
        owner = self._owners.pop(stream.id, None)
        if owner is not None:
            owner.dropped()

    # gRPC.

    def _note_of(self, shape: Shape) -> Note:
        return shape.note or self._noted(shape)  # type: ignore[return-value]  # nobody else writes notes

    def _noted(self, shape: Shape) -> Note:
        """Note of a shape, once, whether calls of it are plain ones that this caller may make."""
        backend, base = self._backend, shape.base
        headers = base.headers
        is_plain = (
            backend.options.memoise
            and base.path == MODEL_INFER
            and base.method == "POST"
            and headers.get("content-type") == grpc_wire.CONTENT_TYPE
            and headers.get("grpc-encoding", "identity") == "identity"
            and backend.rpc.may_infer(context_of(self._facts, headers))
        )
        note = Note(shape, is_plain=is_plain)
        shape.note = note
        return note

    def infer(self, stream: Stream, body: Body) -> None:
        """A ModelInfer call through decoder, queue, run and encoder."""
        backend, headers, max_bytes = self._backend, stream.head.headers, self._backend.options.max_message_bytes
        try:
            deadline_s = self._deadline_s(headers)
        except GrpcFault as fault:
            self.fail(stream, fault)
            return
        encoding, context = headers.get("grpc-encoding"), context_of(self._facts, headers, deadline_s)
        is_plain = self._note_of(stream.shape).is_plain and len(body) <= max_bytes + PREFIX_BYTES
        known = backend.codec.decode(body) if is_plain else None

        def decode() -> InferCall:
            if known is not None:
                return known
            return backend.rpc.decode_infer(bytes(unary_message(body, encoding, max_bytes)), context)

        def answered(call: InferCall, response: TensorResponse) -> None:
            self._owners.pop(stream.id, None)
            self._answer_infer(stream, call, response)

        is_packed, size = bool(len(body) and body[0]), 0 if known is not None else len(body)
        inference = self._owners[stream.id] = Inference(backend, answered, lambda error: self.fail(stream, error))
        inference.start(decode, deadline_s, packed_room(size) if is_packed else parsed_room(size))

    def answer(self, stream: Stream, note: Note, layout: Layout | None, parts: tuple[bytes, ...], size: int) -> None:
        """Answer a plain ModelInfer call with a framed message of `size` octets."""
        trace = stream.values[note.trace_at] if note.trace_at >= 0 else note.trace
        self.machine.answer(stream, TRACED if trace else PLAIN, parts, size, trace)

    def _answer_infer(self, stream: Stream, call: InferCall, response: TensorResponse) -> None:
        backend = self._backend
        try:
            message = backend.codec.encode(call.form, response) if backend.options.memoise else None
            if message is None:
                message = backend.rpc.encode_infer(call, response)
        except Exception as error:  # noqa: BLE001  # the rpc edge
            self.fail(stream, error)
            return
        self._replies.message(stream, message)

    def _unary(self, stream: Stream, call: UnaryCall, body: bytes | bytearray | memoryview) -> None:
        headers, max_bytes = stream.head.headers, self._backend.options.max_message_bytes
        if len(body) and body[0]:
            max_bytes = min(max_bytes, MAX_EXPANDED_BYTES)
        message = bytes(unary_message(body, headers.get("grpc-encoding"), max_bytes))
        context = context_of(self._facts, headers, self._deadline_s(headers))
        if not call.is_slow:
            self._replies.message(stream, call.answer(message, context))
            return

        def elsewhere() -> None:
            try:
                answer = call.answer(message, context)
            except Exception as error:  # noqa: BLE001  # the rpc edge, on the loop's thread
                fault = error
                self._backend.tick.post(lambda: self.fail(stream, fault))
            else:
                self._backend.tick.post(lambda: self._replies.message(stream, answer))

        self._backend.executor.submit(elsewhere)

    def send_message(self, stream: Stream, message: bytes) -> None:
        """One message of a long call."""
        self._replies.part(stream, message)
        if stream.local_ended:  # too much waits
            self._drop(stream)

    def hold(self, call: StreamExchange) -> None:
        """Tell it to go on once its peer has taken some of the answers that wait."""
        self._held.add(call)

    def close_call(self, stream: Stream, error: BaseException | None) -> None:
        """The status that ends a long call."""
        self._owners.pop(stream.id, None)
        if error is not None:
            self.fail(stream, error)
        else:
            self._replies.end(stream)

    def _deadline_s(self, headers: Mapping[str, str]) -> float | None:
        text = headers.get("grpc-timeout")
        return None if text is None else self.seen_s + timeout_s(text)

    def fail(self, stream: Stream | None, error: BaseException) -> None:
        """Answer a stream with what went wrong."""
        if stream is None:
            return
        self._backend.service.refusals.note(error)
        self._release(stream)
        self._replies.failure(stream, error)

    # HTTP over HTTP/2.

    def _http(self, stream: Stream, body: bytes) -> None:
        head = stream.head
        path = head.path.split("?", 1)[0]
        exchange = HttpExchange(
            self._backend, self._facts, head.method, path, head.headers, lambda answer: self._respond(stream, answer)
        )
        inference = exchange.start(body)
        if inference is not None:
            self._owners[stream.id] = inference

    def _respond(self, stream: Stream, response: HttpResponse) -> None:
        self._owners.pop(stream.id, None)
        self._replies.response(stream, response)
