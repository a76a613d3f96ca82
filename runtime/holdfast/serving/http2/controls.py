"""What the frames mean that carry no request: SETTINGS, PING, GOAWAY, WINDOW_UPDATE, PRIORITY, RST_STREAM.

Rules: each is checked for its stream and its size first (RFC 9113 6), and paid for from the connection's allowance if
it asks for nothing. Whatever is wrong is raised; `Receiver` says it to the peer.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from holdfast.serving.http2 import frames
from holdfast.serving.http2.allowance import Allowance
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, StreamFault
from holdfast.serving.http2.limits import (
    DEFAULT_FRAME_BYTES,
    MAX_FRAME_BYTES,
    MAX_SENT_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    Http2Limits,
)
from holdfast.serving.http2.register import StreamRegister
from holdfast.serving.http2.sender import Sender
from holdfast.serving.http2.stream import Event, Handler, Kind

DRAIN_PING: Final = b"draining"  # its acknowledgement says that the peer has seen our first GOAWAY (RFC 9113 6.8)


class ControlFrames:
    """Their handlers, for one connection. `has_settings`: the peer's first SETTINGS came (RFC 9113 3.4)."""

    def __init__(self, limits: Http2Limits, register: StreamRegister, sender: Sender, allowance: Allowance) -> None:
        self.has_settings = False
        self._limits = limits
        self._register = register
        self._sender = sender
        self._allowance = allowance

    def handlers(self) -> dict[int, Handler]:
        """By type of frame."""
        return {
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
        }

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        self._allowance.charge()
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on the connection")
        if len(payload) != 5:  # RFC 9113 6.3; a stream that was never opened cannot be reset (5.1)
            if stream_id in self._register.streams:
                raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")

    def _on_reset(self, _flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        if len(payload) != 4:  # RFC 9113 6.4
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        self._register.require_known(stream_id)
        self._allowance.cancel()
        stream = self._register.drop(stream_id)
        if stream is not None:
            events.append((Kind.DROPPED, stream, b""))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        if stream_id != 0:  # RFC 9113 6.5
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._allowance.charge()
        if flags & frames.ACK:
            if len(payload):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            if not self.has_settings:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first SETTINGS is an acknowledgement")
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if len(payload) > 6 * self._limits.max_settings:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings in one frame")
        self.has_settings = True
        self._apply(frames.read_settings(bytes(payload)))
        self._sender.out.append(frames.SETTINGS_ACK)

    def _apply(self, settings: Iterable[tuple[int, int]]) -> None:
        """RFC 9113 6.5.2; unknown settings, and the bound of lists that ours never reach, are ignored."""
        for key, value in settings:
            if key == frames.Setting.ENABLE_PUSH and value > 1:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
            if key == frames.Setting.HEADER_TABLE_SIZE:
                self._sender.limit_table(value)
            if key == frames.Setting.INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW_BYTES:
                    raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "an initial window above 2^31-1")
                self._sender.set_initial_window(value, self._register.streams)
            if key == frames.Setting.MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a maximal frame size out of range")
                self._sender.max_frame_bytes = min(value, MAX_SENT_FRAME_BYTES)

    def _on_push(self, _flags: int, _stream_id: int, _payload: bytes | memoryview, _events: list[Event]) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")  # RFC 9113 8.4

    def _on_ping(self, flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        if stream_id != 0:  # RFC 9113 6.7
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        if flags & frames.ACK:
            self._allowance.charge()
            if payload == DRAIN_PING:
                self._register.refuse_new()
            return
        if self._sender.has_sent:
            self._sender.has_sent = False
            self._allowance.forgive_pings()
        self._allowance.ping(is_idle=not self._register.streams)
        self._sender.out.append(frames.ping(bytes(payload), ack=True))

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        self._allowance.charge()
        if stream_id != 0:  # RFC 9113 6.8
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "GOAWAY on a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong size")
        # the peer opens streams, not we: it will close the connection when those it has are answered

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        if len(payload) != 4:  # RFC 9113 6.9
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE of a wrong size")
        if self._sender.update_credit > 0:
            self._sender.update_credit -= 1
        else:
            self._allowance.charge()
        increment = int.from_bytes(payload, "big") & MAX_WINDOW_BYTES
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            self._sender.add_window(None, increment)
            return
        self._register.require_known(stream_id)
        if increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        stream = self._register.streams.get(stream_id)
        if stream is not None:
            self._sender.add_window(stream, increment)
