"""The server's end of one HTTP/2 connection (RFC 9113), without a socket: bytes in, events and bytes out.

Rules: no input raises. A peer that breaks the connection's rules gets a GOAWAY and `is_ended`; one that breaks a
stream's rules gets a RST_STREAM; one that keeps us busy for nothing is told ENHANCE_YOUR_CALM. What is held is bounded
(`Http2Limits.memory_bytes`). Every request that was begun ends in an answer of ours or in Kind.DROPPED, or the whole
connection ends. Not offered: push, CONNECT, priorities (RFC 9113 5.3.2 deprecates them), upgrade from HTTP/1.1.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from holdfast.serving.http2 import frames
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, Http2Fault, StreamFault
from holdfast.serving.http2.heads import HeadReader, trailers_defect
from holdfast.serving.http2.hpack import Decoder, HeaderListTooLarge
from holdfast.serving.http2.limits import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_WINDOW_BYTES,
    FRAME_HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_WINDOW_BYTES,
    Bucket,
    Http2Limits,
)
from holdfast.serving.http2.sender import AnswerForm, Sender
from holdfast.serving.http2.stream import Event, HeaderBlock, Kind, Stream

COPY_BYTES = 4_096  # smaller pieces of a body are copied, larger ones are views of what was received
MAX_ENDED = 256  # streams that we ended early and the peer may not know of yet (RFC 9113 5.4.2)
MAX_STREAM_ID = 2**31 - 1
DRAIN_PING = b"draining"

_unpack_header = struct.Struct(">HBBBI").unpack_from
_unpack_whole = struct.Struct(">HBHI").unpack_from  # type and flags as one number
_HEADERS_WHOLE = frames.HEADERS << 8 | frames.END_HEADERS
_DATA_WHOLE = frames.DATA << 8 | frames.END_STREAM


class Http2Connection:
    """One connection. Times are of one monotonic clock, in seconds, and given by the caller."""

    def __init__(self, limits: Http2Limits, now_s: float, *, memoise: bool = True) -> None:
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.is_ended = False
        self.fault: ConnectionFault | None = None
        self.faults: list[Http2Fault] = []  # of what was received; for whoever counts them, and takes them out
        self._sender = Sender()
        decoder = Decoder(limits.header_table_bytes, limits.max_header_list_bytes)
        self._heads = HeadReader(decoder, limits.max_header_list_bytes, memoise=memoise)
        self._rest = b""
        self._data_left, self._data_of = 0, (0, 0)  # of a DATA frame under way: octets, flags, stream
        self._now_s = now_s
        self._turn = 0  # calls of `receive`
        self._earned = 0  # requests answered, not yet credited
        self._resets = Bucket(limits.resets, now_s)
        self._controls = Bucket(limits.controls, now_s)
        self._faults = Bucket(limits.faults, now_s)
        self._last_id = 0
        self._refuse_above = MAX_STREAM_ID
        self._ended_early: dict[int, None] = {}
        self._recv_window = limits.connection_window_bytes
        self._whole_bytes = min(limits.stream_window_bytes, limits.max_frame_bytes)
        self._recv_owed = 0
        self._block: HeaderBlock | None = None
        self._is_open = False  # the preface was seen
        self._has_settings = False
        self._handlers = {
            frames.DATA: self._on_data,
            frames.HEADERS: self._on_headers,
            frames.PRIORITY: self._on_priority,
            frames.RST_STREAM: self._on_reset,
            frames.SETTINGS: self._on_settings,
            frames.PUSH_PROMISE: self._on_push,
            frames.PING: self._on_ping,
            frames.GOAWAY: self._on_goaway,
            frames.WINDOW_UPDATE: self._on_window_update,
            frames.CONTINUATION: self._on_continuation,
        }
        self._greet()

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """What the peer's bytes mean. Never raises; see `is_ended` afterwards."""
        events: list[Event] = []
        if self.is_ended:
            return events
        self._now_s = now_s
        self._turn += 1
        try:
            self._read(self._rest + data if self._rest else data, events)
            if self._sender.ended:
                self._close_ended()
        except ConnectionFault as fault:
            self._fail(fault)
        return events

    def take(self) -> bytes:
        """What to send now; call again until it is empty or the transport says pause."""
        sender = self._sender
        if self._earned:
            self._credit()
        sender.pump()
        if sender.ended:
            self._close_ended()
        if not sender.out:
            return b""
        data = b"".join(sender.out)
        sender.out.clear()
        return data

    def answer(self, stream: Stream, form: AnswerForm, parts: tuple[bytes, ...], size: int, extra: bytes = b"") -> None:
        """A whole answer: a body of `size` octets in parts, between the blocks of `form`. Nothing if it is gone."""
        stream_id = stream.id
        if stream.local_ended or stream_id not in self.streams:
            return
        if not self._sender.answer(stream, form, parts, size, extra):
            self._close_ended()
        elif stream.remote_ended:
            del self.streams[stream_id]
            self._earned += 1
        else:
            self._close(stream)

    def send_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """A header block. Nothing if the stream is gone."""
        if not stream.local_ended and stream.id in self.streams:
            self._sender.headers(stream, block, end=end)
            self._close_ended()

    def send_data(self, stream: Stream, data: bytes | memoryview, *, end: bool = False) -> None:
        """A piece of an answer, as windows allow. Nothing if the stream is gone."""
        if not stream.local_ended and stream.id in self.streams:
            self._sender.data(stream, data, end=end)
            self._close_ended()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """End a stream without an answer; no event follows."""
        if stream.id in self.streams:
            self._abandon(stream, code)

    def grant(self, stream: Stream, size: int) -> None:
        """Let the peer send `size` octets more on a stream than its window said."""
        if size > 0 and not stream.remote_ended and stream.id in self.streams:
            size = min(size, MAX_WINDOW_BYTES - stream.recv_window)
            stream.recv_window += size
            self._sender.out.append(frames.window_update(stream.id, size))

    def pause(self) -> None:
        """The transport takes no more for now."""
        self._sender.is_paused = True

    def resume(self) -> None:
        """The transport takes more; call `take`."""
        self._sender.is_paused = False

    @property
    def unsent_bytes(self) -> int:
        """Of answers that wait for the peer."""
        return self._sender.unsent_bytes

    @property
    def is_mid_frame(self) -> bool:
        """Whether the peer owes the rest of a frame, of a header block, or of the preface."""
        return bool(self._rest or self._data_left) or self._block is not None or not self._has_settings

    def drain(self) -> None:
        """Ask the peer to open no more streams (RFC 9113 6.8); those it opened meanwhile are still answered."""
        if not self.is_ended:
            self._sender.out.append(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR))
            self._sender.out.append(frames.ping(DRAIN_PING, ack=False))

    def close_for_new(self) -> None:
        """Refuse streams from now on. `drain` comes first, and this by itself once the peer has seen it."""
        if not self.is_ended and self._refuse_above == MAX_STREAM_ID:
            self._refuse_above = self._last_id
            self._sender.out.append(frames.goaway(self._last_id, ErrorCode.NO_ERROR))

    @property
    def is_drained(self) -> bool:
        """Whether no stream is open and none will be."""
        return not self.streams and self._refuse_above != MAX_STREAM_ID

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

    def _read(self, buffer: bytes, events: list[Event]) -> None:
        at, size = 0, len(buffer)
        if not self._is_open:
            if buffer[: len(frames.PREFACE)] != frames.PREFACE[:size]:  # RFC 9113 3.4
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not the preface of HTTP/2")
            if size < len(frames.PREFACE):
                self._rest = buffer
                return
            self._is_open = True
            at = len(frames.PREFACE)
        if self._data_left:
            at = self._go_on(buffer, events)
        max_frame = self.limits.max_frame_bytes
        while size - at >= FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = _unpack_header(buffer, at)
            length = high << 8 | low
            start = at + FRAME_HEADER_BYTES
            end = start + length
            if (
                kind == frames.HEADERS
                and flags == frames.END_HEADERS
                and self._has_settings
                and self._block is None
                and (quick_end := self._read_quick(buffer, at, events)) > at
            ):
                at = quick_end
                continue
            if length > max_frame:  # RFC 9113 4.2, before waiting for it
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame larger than announced")
            stream_id &= MAX_STREAM_ID  # RFC 9113 4.1: the reserved bit is ignored
            if end > size:
                if (
                    kind == frames.DATA
                    and length >= COPY_BYTES
                    and not flags & frames.PADDED
                    and self._has_settings
                    and self._block is None
                ):
                    self._data_of, self._data_left, at = (flags, stream_id), length, start
                    at = self._go_on(buffer, events, at)
                break
            if self._block is not None and (kind != frames.CONTINUATION or stream_id != self._block.stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")  # RFC 9113 6.10
            if not self._has_settings and kind != frames.SETTINGS:  # RFC 9113 3.4
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            handler = self._handlers.get(kind)
            try:
                if handler is None:
                    self._charge()  # RFC 9113 4.1: unknown frames are ignored
                elif length < COPY_BYTES:
                    handler(flags, stream_id, buffer[start:end], events)
                else:
                    handler(flags, stream_id, memoryview(buffer)[start:end], events)
            except StreamFault as fault:
                self._fault(fault, events)
            at = end
        self._rest = buffer[at:]

    def _go_on(self, buffer: bytes, events: list[Event], at: int = 0) -> int:
        """What came of a long DATA frame, as if it were a frame of its own: nothing is kept until the rest comes."""
        piece = memoryview(buffer)[at : at + self._data_left]
        self._data_left -= len(piece)
        flags, stream_id = self._data_of
        if len(piece):
            try:
                self._on_data(flags & ~frames.END_STREAM if self._data_left else flags, stream_id, piece, events)
            except StreamFault as fault:
                self._fault(fault, events)
        return at + len(piece)

    def _read_quick(self, buffer: bytes, at: int, events: list[Event]) -> int:
        """Frames of short requests: a head like one that was read before, and the whole body, behind it or a bit later.

        Most of what a busy client sends, at a third of the price. Returns where they end in the buffer: at the first
        frame of anything else, and of whatever may be wrong, which then goes the long way.
        """
        streams, shapes, limits = self.streams, self._heads.shapes, self.limits
        size, last_id, window, turn = len(buffer), self._last_id, self._recv_window, self._turn
        body_limit, send_window = self._whole_bytes, self._sender.initial_window
        while size - at >= FRAME_HEADER_BYTES:
            high, low, kind, stream_id = _unpack_whole(buffer, at)
            start = at + FRAME_HEADER_BYTES
            end = start + (high << 8 | low)
            if kind == _DATA_WHOLE and end <= size:
                begun = streams.get(stream_id)
                if begun is None or begun.begun_turn != turn or not end - start <= min(body_limit, window):
                    break
                begun.remote_ended, begun.begun_turn = True, -1
                window -= end - start
                events[begun.begun_at] = (Kind.WHOLE, begun, buffer[start:end])
                at = end
                continue
            if (
                kind != _HEADERS_WHOLE
                or end > size
                or not last_id < stream_id <= self._refuse_above
                or stream_id & 1 == 0
                or len(streams) >= limits.max_streams
            ):
                break
            for shape in shapes.get(end - start, ()):
                values = shape.read(buffer, start)
                if values is not None:
                    break
            else:
                break
            if shape.base.content_length is not None or shape.base.defect:
                break
            last_id, at = stream_id, end
            stream = streams[stream_id] = Stream(stream_id, (shape, values), limits.stream_window_bytes, send_window)
            if size - at >= FRAME_HEADER_BYTES:
                high, low, kind, data_id = _unpack_whole(buffer, at)
                length = high << 8 | low
                start = at + FRAME_HEADER_BYTES
                if (
                    kind == _DATA_WHOLE
                    and data_id == stream_id
                    and start + length <= size
                    and length <= body_limit
                    and length <= window
                ):
                    at = start + length
                    window -= length
                    stream.remote_ended = True
                    events.append((Kind.WHOLE, stream, buffer[start:at]))
                    continue
            stream.begun_turn, stream.begun_at = turn, len(events)
            events.append((Kind.BEGUN, stream, b""))
        self._last_id = last_id
        self._count_received(self._recv_window - window)
        return at

    def _count_received(self, length: int) -> None:
        """Octets of DATA against the connection's window, given back in halves."""
        self._recv_window -= length
        self._recv_owed += length
        if self._recv_owed * 2 >= self.limits.connection_window_bytes:
            self._sender.out.append(frames.window_update(0, self._recv_owed))
            self._recv_window += self._recv_owed
            self._recv_owed = 0

    # Frames. Payloads of COPY_BYTES and more come as views.

    def _on_data(self, flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        length = len(payload)
        if length > self._recv_window:  # RFC 9113 6.9: padding counts
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self._count_received(length)
        stream = self.streams.get(stream_id)
        if stream is None:
            self._closed_or_fault(stream_id)
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end of a stream")
        stream.recv_window -= length
        if stream.recv_window < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if flags & frames.PADDED:
            payload = _unpadded(payload)
            if not flags & frames.END_STREAM:
                self.grant(stream, length - len(payload))  # padding is not kept
        if stream.length_left is not None:
            stream.length_left -= len(payload)
            if stream.length_left < 0 or (flags & frames.END_STREAM and stream.length_left):
                raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a body of another length than content-length")
        if not flags & frames.END_STREAM:
            if len(payload):
                stream.begun_turn = -1  # too late to hand it over whole
                events.append((Kind.DATA, stream, payload))
            else:
                self._charge()
            return
        stream.remote_ended = True
        if stream.begun_turn == self._turn:
            stream.begun_turn = -1
            events[stream.begun_at] = (Kind.WHOLE, stream, payload)
            return
        if len(payload):
            events.append((Kind.DATA, stream, payload))
        events.append((Kind.ENDED, stream, b""))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if flags & frames.PRIORITY_FLAG:  # RFC 9113 6.2: five octets, of no meaning any more
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "HEADERS too short for its priority")
            payload = payload[5:]
        if stream_id & 1 == 0:  # RFC 9113 5.1.1; 0 among them
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "HEADERS on a stream that no client may open")
        is_end = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, bytes(payload), events, is_end=is_end)
        else:
            self._block = HeaderBlock(stream_id, is_end=is_end)
            self._extend_block(payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        block = self._block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        self._extend_block(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream_id, b"".join(block.parts), events, is_end=block.is_end)

    def _extend_block(self, payload: bytes | memoryview) -> None:
        block = self._block
        assert block is not None
        block.parts.append(bytes(payload))
        block.size += len(payload)
        # RFC 9113 10.5.1: a header block cannot be skipped, only refused with its connection (CVE-2024-27316)
        if block.size > self.limits.max_header_block_bytes or len(block.parts) > self.limits.max_continuations + 1:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block too large or in too many frames")

    def _on_block(self, stream_id: int, block: bytes, events: list[Event], *, is_end: bool) -> None:
        if stream_id <= self._last_id:
            self._on_trailers(stream_id, block, events, is_end=is_end)
            return
        self._last_id = stream_id
        try:
            varied = self._heads.read(block)  # always: the header table must keep step
        except HeaderListTooLarge as error:
            raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too many header fields") from error
        if stream_id > self._refuse_above or len(self.streams) >= self.limits.max_streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "a stream more than allowed")  # RFC 9113 5.1.2
        head = varied[0].base
        if head.defect:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, head.defect)
        if is_end and head.content_length:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a body of another length than content-length")
        stream = Stream(stream_id, varied, self.limits.stream_window_bytes, self._sender.initial_window)
        stream.remote_ended = is_end
        self.streams[stream_id] = stream
        if not is_end:
            stream.begun_turn, stream.begun_at = self._turn, len(events)
        events.append((Kind.WHOLE if is_end else Kind.BEGUN, stream, b""))

    def _on_trailers(self, stream_id: int, block: bytes, events: list[Event], *, is_end: bool) -> None:
        stream = self.streams.get(stream_id)
        try:
            fields = self._heads.decode(block)
        except HeaderListTooLarge as error:
            raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too many trailer fields") from error
        if stream is None:
            self._closed_or_fault(stream_id)
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "HEADERS after the end of a stream")
        defect = "trailers that do not end the stream" if not is_end else trailers_defect(fields)  # RFC 9113 8.1
        if stream.length_left:
            defect = "a body of another length than content-length"
        if defect:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, defect)
        stream.remote_ended = True
        events.append((Kind.ENDED, stream, b""))

    def _on_priority(self, _flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        self._charge()
        if stream_id == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PRIORITY on the connection")
        if len(payload) != 5:  # RFC 9113 6.3; a stream that was never opened cannot be reset (5.1)
            if stream_id in self.streams:
                raise StreamFault(stream_id, ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY of a wrong size")

    def _on_reset(self, _flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        if len(payload) != 4:  # RFC 9113 6.4
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM of a wrong size")
        self._require_known(stream_id)
        if self._earned:
            self._credit()
        if not self._resets.take(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams cancelled")
        stream = self.streams.pop(stream_id, None)
        if stream is not None:
            self._sender.forget(stream)
            stream.local_ended = stream.remote_ended = True
            events.append((Kind.DROPPED, stream, b""))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        if stream_id != 0:  # RFC 9113 6.5
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "SETTINGS on a stream")
        self._charge()
        if flags & frames.ACK:
            if len(payload):
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement with settings")
            if not self._has_settings:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first SETTINGS is an acknowledgement")
            return
        if len(payload) % 6:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong size")
        if len(payload) > 6 * self.limits.max_settings:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many settings in one frame")
        self._has_settings = True
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
                self._sender.set_initial_window(value, self.streams)
            if key == frames.Setting.MAX_FRAME_SIZE:
                if not DEFAULT_FRAME_BYTES <= value <= MAX_FRAME_BYTES:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a maximal frame size out of range")
                self._sender.max_frame_bytes = value

    def _on_push(self, _flags: int, _stream_id: int, _payload: bytes | memoryview, _events: list[Event]) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE from a client")  # RFC 9113 8.4

    def _on_ping(self, flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        if stream_id != 0:  # RFC 9113 6.7
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "PING on a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "PING of a wrong size")
        self._charge("too_many_pings")  # a word that gRPC clients know: they ping less often from then on (gRFC A8)
        if not flags & frames.ACK:
            self._sender.out.append(frames.ping(bytes(payload), ack=True))
        elif payload == DRAIN_PING:
            self.close_for_new()

    def _on_goaway(self, _flags: int, stream_id: int, payload: bytes | memoryview, _events: list[Event]) -> None:
        self._charge()
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
            self._charge()
        increment = int.from_bytes(payload, "big") & MAX_WINDOW_BYTES
        if stream_id == 0:
            if increment == 0:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
            self._sender.add_window(None, increment)
            return
        self._require_known(stream_id)
        if increment == 0:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of nothing")
        stream = self.streams.get(stream_id)
        if stream is not None:
            self._sender.add_window(stream, increment)

    # Ends.

    def _require_known(self, stream_id: int) -> None:
        """RFC 9113 5.1: most frames on an idle stream are the connection's fault; stream 0 is none."""
        if stream_id == 0 or stream_id & 1 == 0 or stream_id > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a frame on an idle stream")

    def _closed_or_fault(self, stream_id: int) -> None:
        """A frame on a stream that is not open: forgiven if the peer may not know yet (RFC 9113 5.1)."""
        self._require_known(stream_id)
        if stream_id not in self._ended_early:
            raise ConnectionFault(ErrorCode.STREAM_CLOSED, "a frame on a closed stream")

    def _credit(self) -> None:
        """Useful work pays for frames that ask for nothing."""
        self._controls.give(self._earned)
        self._resets.give(self._earned)
        self._earned = 0

    def _charge(self, text: str = "too many frames that ask for nothing") -> None:
        if self._earned:
            self._credit()
        if not self._controls.take(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text)

    def _close(self, stream: Stream) -> None:
        """We have said all. A peer that has not is told to stop (RFC 9113 8.1)."""
        del self.streams[stream.id]
        stream.local_ended = True
        if not stream.remote_ended:
            self._tell_reset(stream.id, ErrorCode.NO_ERROR)
        self._earned += 1

    def _close_ended(self) -> None:
        for stream in self._sender.ended:
            if stream.id in self.streams:
                self._close(stream)
        self._sender.ended.clear()

    def _abandon(self, stream: Stream, code: ErrorCode) -> None:
        del self.streams[stream.id]
        self._sender.forget(stream)
        stream.local_ended = stream.remote_ended = True
        self._tell_reset(stream.id, code)

    def _tell_reset(self, stream_id: int, code: ErrorCode) -> None:
        self._sender.out.append(frames.reset(stream_id, code))
        if len(self._ended_early) >= MAX_ENDED:
            del self._ended_early[next(iter(self._ended_early))]
        self._ended_early[stream_id] = None

    def _fault(self, fault: StreamFault, events: list[Event]) -> None:
        if not self._faults.take(self._now_s):
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many faulty streams")
        self.faults.append(fault)
        stream = self.streams.get(fault.stream_id)
        if stream is None:
            self._tell_reset(fault.stream_id, fault.code)
        else:
            self._abandon(stream, fault.code)
            events.append((Kind.DROPPED, stream, b""))

    def _fail(self, fault: ConnectionFault) -> None:
        self.fault = fault
        self.faults.append(fault)
        self.is_ended = True
        self._rest, self._block, self._data_left = b"", None, 0
        for stream in self.streams.values():
            self._sender.forget(stream)
            stream.local_ended = stream.remote_ended = True
        self.streams.clear()
        if self._is_open:
            self._sender.out.append(frames.goaway(self._last_id, fault.code, str(fault)))


def _unpadded(payload: bytes | memoryview) -> bytes | memoryview:
    """RFC 9113 6.1: the first octet says how many at the end are padding."""
    if not len(payload) or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]
