"""The sending half of a connection: flow control, frames of the peer's size, and what has to wait.

Rules: no octet of DATA beyond the peer's windows (RFC 9113 6.9); streams that wait take turns, a frame each; at most
`BURST_BYTES` are turned into frames before the holder takes them, so that what waits is held once, not twice.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Final

from holdfast.serving.http2 import frames
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, StreamFault
from holdfast.serving.http2.limits import (
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW_BYTES,
    MAX_WINDOW_BYTES,
)
from holdfast.serving.http2.stream import Stream

BURST_BYTES: Final = 1_048_576
TABLE_OF_NOTHING: Final = b"\x20"  # RFC 7541 6.3: a dynamic table size update to 0


class AnswerForm:
    """The header blocks around many answers, in frames made beforehand but for the stream and the sizes.

    extra_bytes: octets that every answer adds to the trailer block.
    """

    __slots__ = ("begin_frame", "end_frame", "head", "pack_begin", "pack_end", "trailers")

    def __init__(self, head: bytes, trailers: bytes, extra_bytes: int = 0) -> None:
        assert max(len(head), len(trailers) + extra_bytes) <= DEFAULT_FRAME_BYTES, "the blocks fit one frame each"
        self.head = head
        self.trailers = trailers
        self.begin_frame = frames.header(frames.HEADERS, frames.END_HEADERS, 0, len(head))[:5]
        self.pack_begin = struct.Struct(f">5sI{len(head)}sHBHI").pack  # the last four: a header of DATA without flags
        flags = frames.END_HEADERS | frames.END_STREAM
        self.end_frame = frames.header(frames.HEADERS, flags, 0, len(trailers) + extra_bytes)[:5]
        self.pack_end = struct.Struct(f">5sI{len(trailers)}s{extra_bytes}s").pack


class Sender:
    """Frames of answers, as far as the peer allows."""

    def __init__(self, max_unsent_bytes: int = DEFAULT_WINDOW_BYTES) -> None:
        self._max_unsent_bytes = max_unsent_bytes
        self.has_sent = False  # a frame of use since this was last reset; `answer` has its own account of that
        self.window = DEFAULT_WINDOW_BYTES
        self.initial_window = DEFAULT_WINDOW_BYTES
        self.max_frame_bytes = DEFAULT_FRAME_BYTES
        self.is_paused = False
        self._has_table = True  # as far as the peer knows: we index nothing, but a block has to say so
        self._owed = b""  # before the next block
        self.unsent_bytes = 0  # in queues, behind windows or a pause
        self.has_refused = False  # an answer found no room, and the peer has made none since
        self.update_credit = 0  # WINDOW_UPDATEs that what we sent explains
        self.out: list[bytes | memoryview] = []
        self.ended: list[Stream] = []  # said their last word in a queue's turn; the connection takes them off here
        self._waiting: dict[int, Stream] = {}

    def answer(
        self, stream: Stream, form: AnswerForm, parts: tuple[bytes, ...], size: int, extra: bytes
    ) -> bool | None:
        """A whole answer: header block, DATA of `size` octets, trailer block.

        Returns: False if it has to wait, None if it may not: too much does.
        """
        if (
            size > self.window
            or size > stream.send_window
            or (size > self.max_frame_bytes and size + sum(map(len, self.out)) > BURST_BYTES)
            or self.is_paused
            or stream.queue
            or self._owed
        ):
            if not self.has_room(size):
                return None
            self.headers(stream, form.head, end=False)
            for part in parts:
                self.data(stream, part, end=False)
            self.headers(stream, form.trailers + extra, end=True)
            return False
        self.window -= size
        stream.local_ended = True
        stream_id = stream.id
        out = self.out
        if size > self.max_frame_bytes:
            out.append(form.begin_frame + stream_id.to_bytes(4, "big") + form.head)
            self._put_data(stream_id, b"".join(parts))
            out.append(form.pack_end(form.end_frame, stream_id, form.trailers, extra))
            return True
        self.update_credit += 2
        out.append(
            form.pack_begin(form.begin_frame, stream_id, form.head, size >> 8, size & 0xFF, frames.DATA, stream_id)
        )
        out += parts
        out.append(form.pack_end(form.end_frame, stream_id, form.trailers, extra))
        return True

    def _put_data(self, stream_id: int, body: bytes) -> None:
        """DATA in frames of the peer's size, none of which is the last of its stream."""
        view, step = memoryview(body), self.max_frame_bytes
        for at in range(0, len(body), step):
            piece = view[at : at + step]
            self.out.append(frames.header(frames.DATA, 0, stream_id, len(piece)))
            self.out.append(piece)
            self.update_credit += 2

    def has_room(self, size: int) -> bool:
        """Whether so much more may wait. Where nothing does, anything may."""
        return not self.unsent_bytes or self.unsent_bytes + size <= self._max_unsent_bytes

    def headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """A header block, in its turn."""
        if stream.queue:
            stream.queue.append((block, True, end))
            self.unsent_bytes += len(block)
        else:
            self._put_headers(stream, block, end=end)

    def data(self, stream: Stream, data: bytes | memoryview, *, end: bool) -> None:
        """A piece of the body, as soon as windows allow."""
        if not data and not end:
            return
        if stream.queue is None:
            stream.queue = deque()
        stream.queue.append((memoryview(data), False, end))
        self.unsent_bytes += len(data)
        self._waiting[stream.id] = stream
        if len(stream.queue) == 1:
            self._turn(stream)

    def pump(self) -> None:
        """Turn what waits into frames: by turns, until windows, the burst or a pause stop it."""
        if not self._waiting:
            return
        size = sum(map(len, self.out))
        progress = True
        while self._waiting and progress and not self.is_paused:
            progress = False
            for stream in list(self._waiting.values()):
                if size >= BURST_BYTES:
                    return
                sent = self._turn(stream)
                size += sent
                progress = progress or sent > 0

    def forget(self, stream: Stream) -> None:
        """The stream is gone: so is what it still had to say."""
        if stream.queue:
            self.unsent_bytes -= sum(len(data) for data, _, _ in stream.queue)
            self.has_refused = False
            stream.queue.clear()
        self._waiting.pop(stream.id, None)

    def add_window(self, stream: Stream | None, increment: int) -> None:
        """A WINDOW_UPDATE (RFC 9113 6.9.1) for a stream, or for the connection."""
        self.has_refused = False
        if stream is None:
            if self.window + increment > MAX_WINDOW_BYTES:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a connection window above 2^31-1")
            self.window += increment
            return
        if stream.send_window + increment > MAX_WINDOW_BYTES:
            raise StreamFault(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "a stream window above 2^31-1")
        stream.send_window += increment

    def limit_table(self, size: int) -> None:
        """A smaller header table is acknowledged at the beginning of the next block (RFC 7541 4.2)."""
        if self._has_table and size < DEFAULT_TABLE_BYTES:
            self._has_table, self._owed = False, TABLE_OF_NOTHING

    def set_initial_window(self, size: int, streams: dict[int, Stream]) -> None:
        """RFC 9113 6.9.2: open streams change by the difference, and may go below zero."""
        self.has_refused = False
        difference = size - self.initial_window
        self.initial_window = size
        for stream in streams.values():
            stream.send_window += difference
            if stream.send_window > MAX_WINDOW_BYTES:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a stream window above 2^31-1")

    def _turn(self, stream: Stream) -> int:
        """Send one frame's worth of what a stream has queued, and blocks behind it. Returns the octets put out."""
        queue = stream.queue
        if not queue or self.is_paused:
            return 0
        data, _, end = queue[0]
        size = min(len(data), self.window, stream.send_window, self.max_frame_bytes)
        if size <= 0 and len(data) > 0:
            return 0
        flags = frames.END_STREAM if end and size == len(data) else 0
        self.has_sent = True
        self.out.append(frames.header(frames.DATA, flags, stream.id, size))
        self.out.append(data[:size])
        self.window -= size
        stream.send_window -= size
        self.unsent_bytes -= size
        self.has_refused = False
        self.update_credit += 2
        if size < len(data):
            queue[0] = (data[size:], False, end)
            return size
        queue.popleft()
        if end:
            self._end(stream)
        while queue and queue[0][1]:
            block, _, end = queue.popleft()
            self.unsent_bytes -= len(block)
            self._put_headers(stream, bytes(block), end=end)
        if not queue:
            self._waiting.pop(stream.id, None)
        return size or 1

    def _put_headers(self, stream: Stream, block: bytes, *, end: bool) -> None:
        if self._owed:
            block, self._owed = self._owed + block, b""
        self.has_sent = True
        self.out.append(frames.header_frames(stream.id, block, self.max_frame_bytes, end_stream=end))
        if end:
            self._end(stream)

    def _end(self, stream: Stream) -> None:
        stream.local_ended = True
        self.ended.append(stream)
