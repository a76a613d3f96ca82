"""The streams of one connection: which are open, which were, and what the peer is told of those we end.

Rules: an id is used once, and ids only rise (RFC 9113 5.1.1). The peer may send on a stream that we ended early for as
long as it cannot know; on any other closed stream that ends the connection. At most `MAX_ENDED` are remembered.
"""

from __future__ import annotations

from typing import Final

from holdfast.serving.http2 import frames
from holdfast.serving.http2.allowance import Allowance
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, Http2Fault, StreamFault
from holdfast.serving.http2.sender import Sender
from holdfast.serving.http2.stream import Event, Kind, Stream

MAX_ENDED: Final = 256  # streams that we ended early and the peer may not know of yet (RFC 9113 5.4.2)
MAX_STREAM_ID: Final = 2**31 - 1


class StreamRegister:
    """What both halves of a connection know of its streams. `turn` counts the calls of `Http2Connection.receive`.

    `faults`: what the peer did wrong; for whoever counts them, and takes them out.
    """

    def __init__(self, sender: Sender, allowance: Allowance) -> None:
        self.streams: dict[int, Stream] = {}
        self.faults: list[Http2Fault] = []
        self.last_id = 0
        self.refuse_above = MAX_STREAM_ID
        self.turn = 0
        self._sender = sender
        self._allowance = allowance
        self._ended_early: dict[int, None] = {}

    def refuse_new(self) -> None:
        """Refuse streams from now on, and say so; once (RFC 9113 6.8)."""
        if self.refuse_above == MAX_STREAM_ID:
            self.refuse_above = self.last_id
            self._sender.out.append(frames.goaway(self.last_id, ErrorCode.NO_ERROR))

    def require_known(self, stream_id: int) -> None:
        """RFC 9113 5.1: most frames on an idle stream are the connection's fault; stream 0 is none."""
        if stream_id == 0 or stream_id & 1 == 0 or stream_id > self.last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")

    def require_ended_early(self, stream_id: int) -> None:
        """A frame on a stream that is not open: forgiven if the peer may not know yet (RFC 9113 5.1)."""
        self.require_known(stream_id)
        if stream_id not in self._ended_early:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "a frame on a closed stream")

    def close(self, stream: Stream) -> None:
        """We have said all. A peer that has not is told to stop (RFC 9113 8.1)."""
        del self.streams[stream.id]
        stream.local_ended = True
        if not stream.remote_ended:
            self._tell_reset(stream.id, ErrorCode.NO_ERROR)
        self._allowance.earned += 1

    def close_ended(self) -> None:
        """Those that said their last word in a queue's turn."""
        for stream in self._sender.ended:
            if stream.id in self.streams:
                self.close(stream)
        self._sender.ended.clear()

    def abandon(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream without an answer."""
        del self.streams[stream.id]
        self._sender.forget(stream)
        stream.local_ended = stream.remote_ended = True
        self._tell_reset(stream.id, code)

    def drop(self, stream_id: int) -> Stream | None:
        """The peer ended a stream; which it was, if it was open."""
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self._sender.forget(stream)
            stream.local_ended = stream.remote_ended = True
        return stream

    def drop_all(self) -> None:
        """The connection has ended."""
        for stream in self.streams.values():
            self._sender.forget(stream)
            stream.local_ended = stream.remote_ended = True
        self.streams.clear()

    def fault(self, fault: StreamFault, events: list[Event]) -> None:
        """End a stream whose rules the peer broke. Raises: ConnectionFault: one too many."""
        self._allowance.fault()
        self.faults.append(fault)
        stream = self.streams.get(fault.stream_id)
        if stream is None:
            self._tell_reset(fault.stream_id, fault.code)
        else:
            self.abandon(stream, fault.code)
            events.append((Kind.DROPPED, stream, b""))

    def _tell_reset(self, stream_id: int, code: ErrorCode) -> None:
        self._sender.out.append(frames.reset(stream_id, code))
        if len(self._ended_early) >= MAX_ENDED:
            del self._ended_early[next(iter(self._ended_early))]
        self._ended_early[stream_id] = None
