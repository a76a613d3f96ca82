"""The receiving half of a connection: octets into frames, DATA against the windows, and short requests at once.

Rules: a frame's header is checked before its payload is waited for (RFC 9113 4.2). Of a frame that is not whole only
its octets are kept; of a long DATA frame nothing, it is handed on as it comes. Both ways of reading, `_read_quick` and
the handlers, lead to the same events; the quick one leaves to the other whatever may be wrong.

Not here: what the other frames mean (`controls.py`), and what a header block does (`blocks.py`).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Final

from holdfast.serving.http2 import frames
from holdfast.serving.http2.allowance import Allowance
from holdfast.serving.http2.blocks import HeaderBlocks
from holdfast.serving.http2.controls import ControlFrames
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, StreamFault
from holdfast.serving.http2.heads import HeadReader
from holdfast.serving.http2.hpack import Decoder
from holdfast.serving.http2.limits import FRAME_HEADER_BYTES, MAX_WINDOW_BYTES, Http2Limits
from holdfast.serving.http2.register import MAX_STREAM_ID, StreamRegister
from holdfast.serving.http2.sender import Sender
from holdfast.serving.http2.stream import Event, Kind, Stream

WHOLE_BYTES: Final = 65_536  # of a body that is copied out together with its head
COPY_BYTES: Final = 4_096  # smaller pieces of a body are copied, larger ones are views of what was received

_unpack_header: Final = struct.Struct(">HBBBI").unpack_from
# type and flags as one number
_unpack_whole: Final[Callable[[bytes, int], tuple[int, int, int, int]]] = struct.Struct(">HBHI").unpack_from
_HEADERS_WHOLE: Final = frames.HEADERS << 8 | frames.END_HEADERS
_DATA_WHOLE: Final = frames.DATA << 8 | frames.END_STREAM


class Receiver:
    """Frames of one peer. What breaks the connection's rules is raised, what breaks a stream's is said to the peer."""

    def __init__(
        self, limits: Http2Limits, register: StreamRegister, sender: Sender, allowance: Allowance, *, memoise: bool
    ) -> None:
        self.is_open = False  # the preface was seen
        self._limits = limits
        self._register = register
        self._sender = sender
        self._allowance = allowance
        decoder = Decoder(limits.header_table_bytes, limits.max_header_list_bytes)
        self._heads = HeadReader(decoder, limits.max_header_list_bytes, memoise=memoise)
        self._blocks = HeaderBlocks(limits, register, sender, self._heads)
        self._controls = ControlFrames(limits, register, sender, allowance)
        self._handlers = {frames.DATA: self._on_data, **self._blocks.handlers(), **self._controls.handlers()}
        self._rest = b""
        self._data_left, self._data_of = 0, (0, 0)  # of a DATA frame under way: octets, flags, stream
        self._window = limits.connection_window_bytes
        self._owed = 0  # octets of DATA to give back to the connection's window
        self._whole_bytes = min(limits.stream_window_bytes, limits.max_frame_bytes, WHOLE_BYTES)

    @property
    def is_mid_frame(self) -> bool:
        """Whether the peer owes the rest of a frame, of a header block, or of the preface."""
        is_between = not self._rest and not self._data_left and self._blocks.block is None
        return not (is_between and self._controls.has_settings)

    def forget(self) -> None:
        """The connection has ended: what is incomplete stays so."""
        self._rest, self._blocks.block, self._data_left = b"", None, 0

    def grant(self, stream: Stream, size: int) -> None:
        """Let the peer send `size` octets more on a stream than its window said."""
        if size > 0 and not stream.remote_ended and stream.id in self._register.streams:
            size = min(size, MAX_WINDOW_BYTES - stream.recv_window)
            stream.recv_window += size
            self._sender.out.append(frames.window_update(stream.id, size))
            self._sender.has_sent = True

    def read(self, data: bytes, events: list[Event]) -> None:
        """What more octets mean. Raises: ConnectionFault."""
        buffer = self._rest + data if self._rest else data
        blocks, controls = self._blocks, self._controls
        at, size = 0, len(buffer)
        if not self.is_open:
            if buffer[: len(frames.PREFACE)] != frames.PREFACE[:size]:  # RFC 9113 3.4
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not the preface of HTTP/2")
            if size < len(frames.PREFACE):
                self._rest = buffer
                return
            self.is_open = True
            at = len(frames.PREFACE)
        if self._data_left:
            at = self._go_on(buffer, events)
        while size - at >= FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = _unpack_header(buffer, at)
            length = high << 8 | low
            start, end = at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + length
            if (
                kind == frames.HEADERS
                and flags == frames.END_HEADERS
                and controls.has_settings
                and blocks.block is None
                and (quick_end := self._read_quick(buffer, at, events)) > at
            ):
                at = quick_end
                continue
            if length > self._limits.max_frame_bytes:  # RFC 9113 4.2, before waiting for it
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a frame larger than announced")
            stream_id &= MAX_STREAM_ID  # RFC 9113 4.1: the reserved bit is ignored
            if end > size:
                if (
                    kind == frames.DATA
                    and length >= COPY_BYTES
                    and not flags & frames.PADDED
                    and controls.has_settings
                    and blocks.block is None
                ):
                    self._data_of, self._data_left, at = (flags, stream_id), length, start
                    at = self._go_on(buffer, events, at)
                break
            if blocks.block is not None and (kind != frames.CONTINUATION or stream_id != blocks.block.stream_id):
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was interrupted")  # RFC 9113 6.10
            if not controls.has_settings and kind != frames.SETTINGS:  # RFC 9113 3.4
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "the first frame is not SETTINGS")
            handler = self._handlers.get(kind)
            try:
                if handler is None:
                    self._allowance.charge()  # RFC 9113 4.1: unknown frames are ignored
                elif length < COPY_BYTES:
                    handler(flags, stream_id, buffer[start:end], events)
                elif kind == frames.DATA and not flags:
                    end = self._read_run(buffer, at, stream_id, length, events)
                else:
                    handler(flags, stream_id, memoryview(buffer)[start:end], events)
            except StreamFault as fault:
                self._register.fault(fault, events)
            at = end
        self._rest = buffer[at:]

    def fill(self, view: memoryview, events: list[Event]) -> int:
        """DATA for a stream whose owner said where it belongs: from what was received straight to there.

        Takes the rest of the frame under way, and frames of that stream behind it, as far as nothing about them may be
        wrong; returns how many octets. `read` does the same with all others, and says what is wrong.
        """
        at, size, left = 0, len(view), self._data_left
        if self._rest or self._blocks.block is not None or (not left and size < FRAME_HEADER_BYTES):
            return 0
        flags, stream_id = self._data_of if left else (0, _unpack_header(view)[4])
        stream = self._register.streams.get(stream_id)
        if stream is None or stream.place is None or stream.remote_ended or stream.length_left is not None:
            return 0
        place, begin = stream.place, stream.filled
        filled, most = begin, min(begin + min(stream.recv_window, self._window), len(stream.place))
        while True:
            if left:
                count = min(left, size - at, most - filled)
                place[filled : filled + count] = view[at : at + count]
                at, filled, left = at + count, filled + count, left - count
                if left or flags & frames.END_STREAM:
                    break
            if size - at < FRAME_HEADER_BYTES:
                break
            high, low, kind, next_flags, next_id = _unpack_header(view, at)
            length = high << 8 | low
            is_plain = kind == frames.DATA and next_id == stream_id and not next_flags & ~frames.END_STREAM
            if not is_plain or not 0 < length <= min(most - filled, self._limits.max_frame_bytes):
                break
            at, left, flags = at + FRAME_HEADER_BYTES, length, next_flags
        self._data_left, self._data_of = left, (flags, stream_id)
        stream.filled = filled
        stream.recv_window -= filled - begin
        self._count_received(filled - begin)
        if flags & frames.END_STREAM and not left:
            stream.remote_ended = True
            events.append((Kind.ENDED, stream, b""))
        return at

    def until_filling(self, view: memoryview) -> int:
        """How many octets `read` has to take until `fill` may be of use: up to the begin of a long DATA frame."""
        at, size = self._data_left, len(view)
        while size - at >= FRAME_HEADER_BYTES:
            high, low, kind, *_ = _unpack_header(view, at)
            length = high << 8 | low
            at += FRAME_HEADER_BYTES
            if kind == frames.DATA and length > COPY_BYTES:
                return min(size, at + COPY_BYTES)
            at += length
        return size

    def _go_on(self, buffer: bytes, events: list[Event], at: int = 0) -> int:
        """What came of a long DATA frame, as if it were a frame of its own: nothing is kept until the rest comes."""
        piece = memoryview(buffer)[at : at + self._data_left]
        self._data_left -= len(piece)
        flags, stream_id = self._data_of
        if len(piece):
            try:
                self._on_data(flags & ~frames.END_STREAM if self._data_left else flags, stream_id, piece, events)
            except StreamFault as fault:
                self._register.fault(fault, events)
        return at + len(piece)

    def _read_run(self, buffer: bytes, at: int, stream_id: int, length: int, events: list[Event]) -> int:
        """A DATA frame, with those that follow it and differ in nothing but their payload: one piece of a body.

        Returns where they end in the buffer. Why: a large body comes in dozens of frames of one size, and each by
        itself costs ten times what its octets cost.
        """
        first, view, step = at + FRAME_HEADER_BYTES, memoryview(buffer), FRAME_HEADER_BYTES + length
        stream = self._register.streams.get(stream_id)
        if stream is not None and not stream.remote_ended and stream.length_left is None:
            most = min(self._window, stream.recv_window, len(buffer) - at) // step
            header, start = buffer[at:first], first
            pieces: list[memoryview] = []
            while len(pieces) < most and buffer.startswith(header, start - FRAME_HEADER_BYTES):
                pieces.append(view[start : start + length])
                start += step
            if len(pieces) > 1:
                size = length * len(pieces)
                self._count_received(size)
                stream.recv_window -= size
                stream.begun_turn = -1  # too late to hand it over whole
                events.append((Kind.DATA, stream, b"".join(pieces)))
                return start - FRAME_HEADER_BYTES
        self._on_data(0, stream_id, view[first : first + length], events)
        return first + length

    def _read_quick(self, buffer: bytes, at: int, events: list[Event]) -> int:
        """Frames of short requests: a head like one that was read before, and the whole body behind it or a bit later.

        Returns where they end in the buffer: whatever else comes, or may be wrong, goes the long way from there.
        """
        register, shapes, limits = self._register, self._heads.shapes, self._limits
        streams, turn, last_id, refuse_above = register.streams, register.turn, register.last_id, register.refuse_above
        size, window = len(buffer), self._window
        body_limit, send_window = self._whole_bytes, self._sender.initial_window
        while size - at >= FRAME_HEADER_BYTES:
            high, low, kind, stream_id = _unpack_whole(buffer, at)
            start, end = at + FRAME_HEADER_BYTES, at + FRAME_HEADER_BYTES + (high << 8 | low)
            if kind == _DATA_WHOLE and end <= size:
                begun = streams.get(stream_id)
                if begun is None or begun.begun_turn != turn or begun.length_left is not None:
                    break
                if not end - start <= min(body_limit, window):
                    break
                begun.remote_ended, begun.begun_turn = True, -1
                window -= end - start
                events[begun.begun_at] = (Kind.WHOLE, begun, buffer[start:end])
                at = end
                continue
            if (
                kind != _HEADERS_WHOLE
                or end > size
                or not last_id < stream_id <= refuse_above
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
                length, start = high << 8 | low, at + FRAME_HEADER_BYTES
                if (
                    kind == _DATA_WHOLE
                    and data_id == stream_id
                    and start + length <= size
                    and length <= body_limit
                    and length <= window
                ):
                    at, window = start + length, window - length
                    stream.remote_ended = True
                    events.append((Kind.WHOLE, stream, buffer[start:at]))
                    continue
            stream.begun_turn, stream.begun_at = turn, len(events)
            events.append((Kind.BEGUN, stream, b""))
        register.last_id = last_id
        self._count_received(self._window - window)
        return at

    def _count_received(self, length: int) -> None:
        """Octets of DATA against the connection's window, given back in halves."""
        self._window -= length
        self._owed += length
        if self._owed * 2 >= self._limits.connection_window_bytes:
            self._sender.out.append(frames.window_update(0, self._owed))
            self._sender.has_sent = True
            self._window += self._owed
            self._owed = 0

    def _on_data(self, flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        register = self._register
        length = len(payload)
        if length > self._window:  # RFC 9113 6.9: padding counts
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the connection's window")
        self._count_received(length)
        stream = register.streams.get(stream_id)
        if stream is None:
            register.require_ended_early(stream_id)
            return
        if stream.remote_ended:
            raise StreamFault(stream_id, ErrorCode.STREAM_CLOSED, "DATA after the end of a stream")
        stream.recv_window -= length
        if stream.recv_window < 0:
            raise StreamFault(stream_id, ErrorCode.FLOW_CONTROL_ERROR, "more DATA than the stream's window")
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
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
                self._allowance.charge()
            return
        stream.remote_ended = True
        if stream.begun_turn == register.turn:
            stream.begun_turn = -1
            events[stream.begun_at] = (Kind.WHOLE, stream, payload)
            return
        if len(payload):
            events.append((Kind.DATA, stream, payload))
        events.append((Kind.ENDED, stream, b""))
