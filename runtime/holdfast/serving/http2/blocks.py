"""HEADERS and CONTINUATION, into the requests that they begin or the trailers that end them (RFC 9113 6.2, 6.10, 8.1).

Rules: every block is decompressed, of refused streams too, because the header table must keep step; a block in several
frames is bounded in octets and frames before it is read. A malformed head is its stream's fault.
"""

from __future__ import annotations

from holdfast.serving.http2 import frames
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, StreamFault
from holdfast.serving.http2.heads import HeadReader, trailers_defect
from holdfast.serving.http2.hpack import HeaderListTooLarge
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.register import StreamRegister
from holdfast.serving.http2.sender import Sender
from holdfast.serving.http2.stream import Event, Handler, HeaderBlock, Kind, Stream


class HeaderBlocks:
    """Their handlers, for one connection. `block`: the one that lacks frames still, or None."""

    def __init__(self, limits: Http2Limits, register: StreamRegister, sender: Sender, heads: HeadReader) -> None:
        self.block: HeaderBlock | None = None
        self._limits = limits
        self._register = register
        self._sender = sender
        self._heads = heads

    def handlers(self) -> dict[int, Handler]:
        """By type of frame."""
        return {frames.HEADERS: self._on_headers, frames.CONTINUATION: self._on_continuation}

    def _on_headers(self, flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        if flags & frames.PADDED:
            payload = frames.unpadded(payload)
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
            self.block = HeaderBlock(stream_id, is_end=is_end)
            self._extend_block(payload)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes | memoryview, events: list[Event]) -> None:
        block = self.block
        if block is None:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without a header block")
        self._extend_block(payload)
        if flags & frames.END_HEADERS:
            self.block = None
            self._on_block(stream_id, b"".join(block.parts), events, is_end=block.is_end)

    def _extend_block(self, payload: bytes | memoryview) -> None:
        block = self.block
        assert block is not None
        block.parts.append(bytes(payload))
        block.size += len(payload)
        # RFC 9113 10.5.1: a header block cannot be skipped, only refused with its connection (CVE-2024-27316)
        if block.size > self._limits.max_header_block_bytes or len(block.parts) > self._limits.max_continuations + 1:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block too large or in too many frames")

    def _on_block(self, stream_id: int, block: bytes, events: list[Event], *, is_end: bool) -> None:
        register = self._register
        if stream_id <= register.last_id:
            self._on_trailers(stream_id, block, events, is_end=is_end)
            return
        register.last_id = stream_id
        try:
            varied = self._heads.read(block)  # always: the header table must keep step
        except HeaderListTooLarge as error:
            raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too many header fields") from error
        if stream_id > register.refuse_above or len(register.streams) >= self._limits.max_streams:
            raise StreamFault(stream_id, ErrorCode.REFUSED_STREAM, "a stream more than allowed")  # RFC 9113 5.1.2
        head = varied[0].base
        if head.defect:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, head.defect)
        if is_end and head.content_length:
            raise StreamFault(stream_id, ErrorCode.PROTOCOL_ERROR, "a body of another length than content-length")
        stream = Stream(stream_id, varied, self._limits.stream_window_bytes, self._sender.initial_window)
        stream.remote_ended = is_end
        register.streams[stream_id] = stream
        if not is_end:
            stream.begun_turn, stream.begun_at = register.turn, len(events)
        events.append((Kind.WHOLE if is_end else Kind.BEGUN, stream, b""))

    def _on_trailers(self, stream_id: int, block: bytes, events: list[Event], *, is_end: bool) -> None:
        register = self._register
        stream = register.streams.get(stream_id)
        try:
            fields = self._heads.decode(block)
        except HeaderListTooLarge as error:
            raise StreamFault(stream_id, ErrorCode.ENHANCE_YOUR_CALM, "too many trailer fields") from error
        if stream is None:
            register.require_ended_early(stream_id)
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
