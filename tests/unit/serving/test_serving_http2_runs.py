"""DATA frames of one size behind one another: read together, and meaning what they mean one by one."""

from __future__ import annotations

import hpack
import pytest

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.stream import Event, Kind, Stream

SMALL = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")], False)
HEADERS_FLAGS = frames.END_HEADERS
LONG = 5_000  # octets of a frame that is not copied by itself


@pytest.mark.parametrize("cut", [1, 999, LONG, LONG + 9, 3 * (LONG + 9), 200_000])
def test_frames_alike_behind_one_another_are_one_body_against_the_same_windows(cut: int) -> None:
    server = opened()
    body = bytes(range(256)) * (LONG * 12 // 256 + 1)
    pieces = [body[at : at + LONG] for at in range(0, LONG * 12, LONG)]
    other = frame(frames.HEADERS, HEADERS_FLAGS, 3, SMALL) + frame(frames.DATA, 0, 3, b"o" * LONG)
    sent_first = b"".join(frame(frames.DATA, 0, 1, piece) for piece in pieces[:7])
    sent_then = b"".join(frame(frames.DATA, 0, 1, piece) for piece in pieces[7:])
    data = frame(frames.HEADERS, HEADERS_FLAGS, 1, SMALL) + sent_first + other + sent_then

    events = [event for at in range(0, len(data), cut) for event in kept(server.receive(data[at : at + cut], 0.0))]

    assert b"".join(piece for _, stream, piece in events if stream.id == 1) == body[: LONG * 12]
    assert b"".join(piece for _, stream, piece in events if stream.id == 3) == b"o" * LONG
    assert server.streams[1].recv_window == Http2Limits().stream_window_bytes - LONG * 12
    assert server._receiver._window == Http2Limits().connection_window_bytes - LONG * 13


def test_frames_alike_beyond_the_streams_window_end_the_stream() -> None:
    server = opened(Http2Limits(stream_window_bytes=4 * LONG + 1))
    data = b"".join(frame(frames.DATA, 0, 1, b"x" * LONG) for _ in range(7))

    events = kept(server.receive(frame(frames.HEADERS, HEADERS_FLAGS, 1, SMALL) + data, 0.0))

    assert b"".join(piece for kind, _, piece in events if kind is Kind.DATA) == b"x" * 4 * LONG
    assert events[-1][0] is Kind.DROPPED
    assert server.take().endswith(frames.reset(1, ErrorCode.FLOW_CONTROL_ERROR))


def kept(events: list[Event]) -> list[tuple[Kind, Stream, bytes]]:
    """Events with copies of what is valid only until the next call."""
    return [(kind, stream, bytes(piece)) for kind, stream, piece in events]


def opened(limits: Http2Limits | None = None) -> Http2Connection:
    server = Http2Connection(limits or Http2Limits(), 0.0)
    server.receive(PREFACE + frames.settings({}), 0.0)
    server.take()
    return server
