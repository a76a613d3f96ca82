"""Frames that break a rule of RFC 9113: each is told by the code of the rule, and ends its stream or the connection."""

from __future__ import annotations

import hpack
import pytest
from tests.fakes.http2_server import DONE, OPEN, POST, SMALL, error_of, opened, sent

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.stream import Kind

P = ErrorCode.PROTOCOL_ERROR
SIZE = ErrorCode.FRAME_SIZE_ERROR
CONNECTION_DEFECTS: dict[str, tuple[bytes, ErrorCode]] = {
    "headers_on_stream_zero": (frame(1, 5, 0, SMALL), P),
    "headers_on_even_stream": (frame(1, 5, 2, SMALL), P),
    "lower_stream_id_than_before": (frame(1, 5, 5, SMALL) + frame(1, 5, 3, SMALL), ErrorCode.STREAM_CLOSED),
    "data_on_stream_zero": (frame(0, 0, 0, b"x"), P),
    "data_on_idle_stream": (frame(0, 0, 7, b"x"), P),
    "padding_longer_than_frame": (OPEN + frame(0, 8, 1, b"\x05abc"), P),
    "padding_without_length": (OPEN + frame(0, 8, 1), P),
    "headers_padding_longer_than_frame": (frame(1, 12, 1, b"\xff" + SMALL), P),
    "headers_priority_cut_short": (frame(1, 0x24, 1, b"abc"), SIZE),
    "frame_too_large": (b"\x04\x00\x01\x00\x00\x00\x00\x00\x01", SIZE),
    "priority_on_stream_zero": (frame(2, 0, 0, b"12345"), P),
    "priority_wrong_size": (frame(2, 0, 1, b"1234"), SIZE),
    "reset_wrong_size": (DONE + frame(3, 0, 1, b"123"), SIZE),
    "reset_on_idle_stream": (frame(3, 0, 1, b"1234"), P),
    "reset_on_stream_zero": (frame(3, 0, 0, b"1234"), P),
    "settings_on_a_stream": (frame(4, 0, 1), P),
    "settings_wrong_size": (frame(4, 0, 0, b"12345"), SIZE),
    "settings_ack_with_payload": (frame(4, 1, 0, b"123456"), SIZE),
    "settings_too_many": (frame(4, 0, 0, b"\0\x63\0\0\0\0" * 65), ErrorCode.ENHANCE_YOUR_CALM),
    "enable_push_two": (frame(4, 0, 0, b"\0\2\0\0\0\2"), P),
    "initial_window_too_large": (frame(4, 0, 0, b"\0\4\x80\0\0\0"), ErrorCode.FLOW_CONTROL_ERROR),
    "max_frame_too_small": (frame(4, 0, 0, b"\0\5\0\0\0\1"), P),
    "max_frame_too_large": (frame(4, 0, 0, b"\0\5\1\0\0\0"), P),
    "push_promise": (frame(5, 4, 1, b"\0\0\0\2" + SMALL), P),
    "ping_wrong_size": (frame(6, 0, 0, b"1234567"), SIZE),
    "ping_on_a_stream": (frame(6, 0, 1, b"12345678"), P),
    "goaway_on_a_stream": (frame(7, 0, 1, b"12345678"), P),
    "goaway_wrong_size": (frame(7, 0, 0, b"1234567"), SIZE),
    "window_update_wrong_size": (frame(8, 0, 0, b"123"), SIZE),
    "window_update_of_zero": (frame(8, 0, 0, b"\0\0\0\0"), P),
    "window_update_on_idle_stream": (frame(8, 0, 9, b"\0\0\0\1"), P),
    "connection_window_overflow": (frame(8, 0, 0, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    "continuation_alone": (frame(9, 4, 1, SMALL), P),
    "block_interrupted": (frame(1, 1, 1, b"") + frame(6, 0, 0, b"12345678"), P),
    "block_interrupted_by_other_stream": (frame(1, 1, 1, b"") + frame(9, 4, 3, SMALL), P),
    "block_too_large": (frame(1, 1, 1, bytes(16_384)) + frame(9, 0, 1, bytes(16_384)) * 2, ErrorCode.ENHANCE_YOUR_CALM),
    "block_in_too_many_frames": (frame(1, 1, 1, b"") + frame(9, 0, 1) * 20, ErrorCode.ENHANCE_YOUR_CALM),
    "block_not_decodable": (frame(1, 5, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
    "trailers_not_decodable": (OPEN + frame(1, 5, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR),
}


@pytest.mark.parametrize("defect", sorted(CONNECTION_DEFECTS))
def test_connection_defect_is_named(defect: str) -> None:
    data, code = CONNECTION_DEFECTS[defect]
    server = opened()

    server.receive(data, 0.0)

    assert server.is_ended
    assert error_of(server) is code
    assert server.receive(OPEN, 0.0) == []


@pytest.mark.parametrize(
    ("first", "tells"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", False),
        (PREFACE[:-1] + b"x", False),
        (PREFACE + frame(6, 0, 0, bytes(8)), True),
        (PREFACE + frames.SETTINGS_ACK, True),
    ],
    ids=["http_1", "preface_wrong_at_its_end", "first_frame_not_settings", "first_settings_an_ack"],
)
def test_defect_of_the_opening_ends_the_connection(first: bytes, tells: bool) -> None:
    server = Http2Connection(Http2Limits(), 0.0)

    server.receive(first, 0.0)

    assert server.is_ended
    assert (sent(server.take())[-1][0] == frames.GOAWAY) is tells


def block(*more: tuple[str, str]) -> bytes:
    return hpack.Encoder().encode([*POST, *more])


STREAM_DEFECTS: dict[str, tuple[bytes, ErrorCode]] = {
    "head_malformed": (frame(1, 5, 1, block(("A", "b"))), P),
    "body_longer_than_said": (frame(1, 4, 1, block(("content-length", "2"))) + frame(0, 0, 1, b"abc"), P),
    "body_shorter_than_said": (frame(1, 4, 1, block(("content-length", "2"))) + frame(0, 1, 1, b"a"), P),
    "no_body_where_one_was_said": (frame(1, 5, 1, block(("content-length", "2"))), P),
    "trailers_before_the_said_end": (
        frame(1, 4, 1, block(("content-length", "2"))) + frame(1, 5, 1, b"\x00\x01a\x01b"),
        P,
    ),
    "trailers_without_end": (OPEN + frame(1, 4, 1, b"\x00\x01a\x01b"), P),
    "trailers_with_pseudo_header": (OPEN + frame(1, 5, 1, b"\x83"), P),
    "data_after_end": (DONE + frame(0, 0, 1, b"x"), ErrorCode.STREAM_CLOSED),
    "headers_after_end": (DONE + frame(1, 5, 1, b""), ErrorCode.STREAM_CLOSED),
    "data_beyond_window": (OPEN + frame(0, 0, 1, bytes(16_384)) * 17, ErrorCode.FLOW_CONTROL_ERROR),
    "window_overflow": (OPEN + frame(8, 0, 1, b"\x7f\xff\xff\xff"), ErrorCode.FLOW_CONTROL_ERROR),
    "window_update_of_zero": (OPEN + frame(8, 0, 1, bytes(4)), P),
    "priority_wrong_size": (OPEN + frame(2, 0, 1, b"1"), SIZE),
    "headers_too_large": (
        frame(1, 5, 1, hpack.Encoder().encode([*POST, ("a", "x" * 16_384)])[:16_384]),
        ErrorCode.ENHANCE_YOUR_CALM,
    ),
}


@pytest.mark.parametrize("defect", sorted(STREAM_DEFECTS))
def test_stream_defect_ends_that_stream_only(defect: str) -> None:
    data, code = STREAM_DEFECTS[defect]
    server = opened()

    server.receive(data, 0.0)

    assert not server.is_ended, server.fault
    assert (frames.RST_STREAM, 0, 1, code.to_bytes(4, "big")) in sent(server.take())
    assert server.streams == {}
    assert [kind for kind, _, _ in server.receive(frame(1, 5, 7, SMALL), 0.0)] == [Kind.WHOLE]


def test_streams_above_the_bound_are_refused() -> None:
    server = opened(Http2Limits(max_streams=2))

    events = server.receive(b"".join(frame(1, 5, n, SMALL) for n in (1, 3, 5)), 0.0)

    assert [stream.id for _, stream, _ in events] == [1, 3]
    assert (frames.RST_STREAM, 0, 5, b"\0\0\0\7") in sent(server.take())


def test_connection_window_is_kept() -> None:
    server = opened(Http2Limits(connection_window_bytes=65_535, stream_window_bytes=1_000_000))
    server.receive(OPEN, 0.0)
    for _ in range(20):
        server.receive(frame(0, 0, 1, bytes(16_384)), 0.0)
    granted = sum(int.from_bytes(p, "big") for kind, _, to, p in sent(server.take()) if (kind, to) == (8, 0))

    assert not server.is_ended
    assert 20 * 16_384 - 65_535 < granted <= 20 * 16_384
