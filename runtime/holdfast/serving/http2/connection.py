"""The server's end of one HTTP/2 connection (RFC 9113), without a socket: bytes in, events and bytes out.

Rules: no input raises. A peer that breaks the connection's rules gets a GOAWAY and `is_ended`; one that breaks a
stream's rules gets a RST_STREAM; one that keeps us busy for nothing is told ENHANCE_YOUR_CALM. What is held is bounded
(`Http2Limits.memory_bytes`). Every request that was begun ends in an answer of ours or in Kind.DROPPED, or the whole
connection ends. Not offered: push, CONNECT, priorities (RFC 9113 5.3.2 deprecates them), upgrade from HTTP/1.1.

Its parts: `Receiver` and `Sender`, the two halves; `StreamRegister` and `Allowance`, what both of them know.
"""

from __future__ import annotations

from holdfast.serving.http2 import frames
from holdfast.serving.http2.allowance import Allowance
from holdfast.serving.http2.controls import DRAIN_PING
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, StreamFault
from holdfast.serving.http2.limits import DEFAULT_WINDOW_BYTES, Http2Limits
from holdfast.serving.http2.receiver import Receiver
from holdfast.serving.http2.register import MAX_STREAM_ID, StreamRegister
from holdfast.serving.http2.sender import AnswerForm, Sender
from holdfast.serving.http2.stream import Event, Stream


class Http2Connection:
    """One connection. Times are of one monotonic clock, in seconds, and given by the caller.

    `streams`: those that are open. `faults`: of what was received; for whoever counts them, and takes them out.
    """

    def __init__(self, limits: Http2Limits, now_s: float, *, memoise: bool = True) -> None:
        self.limits = limits
        self.is_ended = False
        self.fault: ConnectionFault | None = None
        self._sender = Sender(limits.max_unsent_bytes)
        self._allowance = Allowance(limits, now_s)
        self._register = StreamRegister(self._sender, self._allowance)
        self._receiver = Receiver(limits, self._register, self._sender, self._allowance, memoise=memoise)
        self.streams = self._register.streams
        self.faults = self._register.faults
        self._greet()

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """What the peer's bytes mean. Never raises; see `is_ended` afterwards."""
        events: list[Event] = []
        if self.is_ended:
            return events
        self._allowance.now_s = now_s
        self._register.turn += 1
        try:
            self._receiver.read(data, events)
            if self._sender.ended:
                self._register.close_ended()
        except ConnectionFault as fault:
            self._fail(fault)
        return events

    def fill(self, data: memoryview, events: list[Event]) -> int:
        """Of the peer's bytes those that go straight to a stream's `place`; how many. The others are for `receive`."""
        return 0 if self.is_ended else self._receiver.fill(data, events)

    def until_filling(self, data: memoryview) -> int:
        """How many bytes `receive` has to take, one at least, until `fill` may be of use again."""
        return self._receiver.until_filling(data)

    def take(self) -> bytes:
        """What to send now; call again until it is empty or the transport says pause."""
        sender, allowance = self._sender, self._allowance
        if allowance.earned:
            allowance.credit()
        sender.pump()
        if sender.ended:
            self._register.close_ended()
        if not sender.out:
            return b""
        data = b"".join(sender.out)
        sender.out.clear()
        return data

    def answer(self, stream: Stream, form: AnswerForm, parts: tuple[bytes, ...], size: int, extra: bytes = b"") -> None:
        """A whole answer: a body of `size` octets in parts, between the blocks of `form`. Nothing if it is gone.

        One that would have to wait where too much does already ends its stream instead: ENHANCE_YOUR_CALM, which gRPC
        clients read as RESOURCE_EXHAUSTED.
        """
        stream_id = stream.id
        if stream.local_ended or stream_id not in self.streams:
            return
        sent = self._sender.answer(stream, form, parts, size, extra)
        if not sent:
            if sent is None:
                self._refuse_to_hold(stream)
            self._register.close_ended()
        elif stream.remote_ended:
            del self.streams[stream_id]
            self._allowance.earned += 1
        else:
            self._register.close(stream)

    def send_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """A header block. Nothing if the stream is gone."""
        if not stream.local_ended and stream.id in self.streams:
            self._sender.headers(stream, block, end=end)
            self._register.close_ended()

    def send_data(self, stream: Stream, data: bytes | memoryview, *, end: bool = False) -> None:
        """A piece of an answer, as windows allow. Nothing if the stream is gone; where too much waits it ends."""
        if not stream.local_ended and stream.id in self.streams:
            if self._sender.has_room(len(data)):
                self._sender.data(stream, data, end=end)
            else:
                self._refuse_to_hold(stream)
            self._register.close_ended()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream without an answer; no event follows."""
        if stream.id in self.streams:
            self._register.abandon(stream, code)

    def grant(self, stream: Stream, size: int) -> None:
        """Let the peer send `size` octets more on a stream than its window said."""
        self._receiver.grant(stream, size)

    def pause(self) -> None:
        """The transport takes no more for now."""
        self._sender.is_paused = True

    def resume(self) -> None:
        """The transport takes more; call `take`."""
        self._sender.is_paused = False

    @property
    def has_output(self) -> bool:
        """Whether `take` gives something."""
        return bool(self._sender.out)

    @property
    def unsent_bytes(self) -> int:
        """Of answers that wait for the peer."""
        return self._sender.unsent_bytes

    @property
    def is_full(self) -> bool:
        """Whether too much waits for the peer to run anything more for it.

        Whether one answer will find room is not known before its run: the sizes of outputs may depend on the data, and
        what the peer takes meanwhile is the peer's. So one run may be for nothing; from then on, until the peer has
        made room, the next would be too.
        """
        return self._sender.has_refused or self._sender.unsent_bytes > self.limits.max_unsent_bytes

    @property
    def is_blocked(self) -> bool:
        """Whether what waits, waits for windows that the peer has to open."""
        return self._sender.unsent_bytes > 0 and not self._sender.is_paused

    @property
    def is_mid_frame(self) -> bool:
        """Whether the peer owes the rest of a frame, of a header block, or of the preface."""
        return self._receiver.is_mid_frame

    def drain(self) -> None:
        """Ask the peer to open no more streams (RFC 9113 6.8); those it opened meanwhile are still answered."""
        if not self.is_ended:
            self._sender.out.append(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self._sender.out.append(frames.ping(DRAIN_PING, ack=False))

    def close_for_new(self) -> None:
        """Refuse streams from now on. `drain` comes first, and this by itself once the peer has seen it."""
        if not self.is_ended:
            self._register.refuse_new()

    def close(self) -> None:
        """Let go of all that waits: the peer is gone."""
        self.is_ended = True
        self._receiver.forget()
        self._register.drop_all()
        self._sender.out.clear()

    @property
    def is_drained(self) -> bool:
        """Whether no stream is open and none will be."""
        return not self.streams and self._register.refuse_above != MAX_STREAM_ID

    def _greet(self) -> None:
        limits = self.limits
        values = {
            frames.Setting.HEADER_TABLE_SIZE: limits.header_table_bytes,
            frames.Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
            frames.Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            frames.Setting.MAX_FRAME_SIZE: limits.max_frame_bytes,
            frames.Setting.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
        }
        self._sender.out.append(frames.settings(values))
        more = limits.connection_window_bytes - DEFAULT_WINDOW_BYTES
        if more > 0:
            self._sender.out.append(frames.window_update(0, more))

    def _refuse_to_hold(self, stream: Stream) -> None:
        code = ErrorCode.ENHANCE_YOUR_CALM
        self.faults.append(StreamFault(stream.id, code, "answers are not taken"))
        self._register.abandon(stream, code)
        self._sender.has_refused = True

    def _fail(self, fault: ConnectionFault) -> None:
        self.fault = fault
        self.faults.append(fault)
        self.is_ended = True
        self._receiver.forget()
        self._register.drop_all()
        if self._receiver.is_open:
            self._sender.out.append(frames.goaway(self._register.last_id, fault.code, str(fault)))
