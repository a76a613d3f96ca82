"""The HTTP/2 machine against `h2` as its client: bodies, windows, turns, padding, tables, draining and cancelling."""

from __future__ import annotations

import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.http2_server import (
    BLOCK,
    EMPTY_SETTINGS,
    FORM,
    HEADERS_FLAGS,
    POST,
    SMALL,
    Pair,
    answer,
    body_of,
    opened,
    sent,
)

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.stream import Kind


def test_small_request_is_one_event() -> None:
    pair = Pair()

    ((begun, stream, _), *rest) = pair.ask(1, b"hello")

    assert begun is Kind.BEGUN
    assert (stream.head.path, body_of(rest)) == ("/p", b"hello")
    both = Http2Connection(Http2Limits(), 0.0).receive(
        PREFACE + EMPTY_SETTINGS + frame(1, HEADERS_FLAGS, 1, BLOCK) + frame(0, 1, 1, b"hello"), 0.0
    )
    assert [(kind, bytes(data)) for kind, _, data in both] == [(Kind.WHOLE, b"hello")]


@settings(max_examples=30, deadline=None)
@given(
    bodies=st.lists(st.integers(0, 400_000), min_size=1, max_size=4),
    cut=st.sampled_from([0, 0, 1_000, 7]),
    window=st.sampled_from([0, 1, 1_000, 65_535, 1_000_000]),
)
def test_bodies_of_any_size_pass_both_ways(bodies: list[int], cut: int, window: int) -> None:
    pair = Pair(INITIAL_WINDOW_SIZE=window)
    if cut == 7:
        bodies = [size % 5_000 for size in bodies]

    for index, size in enumerate(bodies):
        stream_id = 2 * index + 1
        body = bytes(index + n % 251 for n in range(size)) if size < 5_000 else bytes([index]) * size
        events = pair.ask(stream_id, body, cut=cut)
        stream = events[0][1]
        assert (events[-1][0] in (Kind.ENDED, Kind.WHOLE), body_of(events)) == (True, body)
        answer(pair.server, stream, b"12345", body)
        pair.step()
        got, ended = pair.answers(stream_id)
        while not ended:
            if window < 100_000:
                pair.client.increment_flow_control_window(100_000, stream_id)
            pair.step()
            more, ended = pair.answers(stream_id)
            got += more
        assert got == b"12345" + body
    assert pair.server.streams == {}
    assert pair.server.unsent_bytes == 0


def test_window_that_shrinks_below_zero_is_waited_for() -> None:
    pair = Pair()
    stream = pair.ask(1)[0][1]
    answer(pair.server, stream, bytes(70_000))  # the last 4 465 octets must wait
    pair.step()

    pair.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 10})
    pair.step()
    assert stream.send_window < 0
    pair.client.increment_flow_control_window(100_000, 1)
    pair.client.increment_flow_control_window(100_000)
    pair.step()

    assert len(pair.answers(1)[0]) == 70_000


def test_waiting_streams_take_turns() -> None:
    server = opened()
    (_, one, _), (_, two, _) = server.receive(frame(1, 5, 1, SMALL) + frame(1, 5, 3, SMALL), 0.0)
    server.receive(frame(frames.SETTINGS, 0, 0, b"\0\4\0\x10\0\0"), 0.0)
    for stream in (one, two):
        answer(server, stream, bytes(100_000))
    server.take()

    server.receive(frames.window_update(0, 60_000), 0.0)

    data = [stream_id for kind, _, stream_id, _ in sent(server.take()) if kind == frames.DATA]
    assert set(data) == {1, 3}


def test_pause_holds_data_back_and_resume_lets_it_go() -> None:
    pair = Pair()
    stream = pair.ask(1)[0][1]
    pair.server.pause()

    answer(pair.server, stream, b"body")
    pair.step()
    assert pair.answers(1) == (b"", False)
    pair.server.resume()
    pair.step()

    assert pair.answers(1) == (b"body", True)


def test_padding_and_priority_are_taken_off() -> None:
    pair = Pair()
    pair.client.send_headers(1, POST, priority_weight=5)
    pair.client.send_data(1, b"abc", pad_length=200)
    pair.client.send_data(1, b"def", pad_length=0, end_stream=True)

    events = pair.step()

    assert body_of(events) == b"abcdef"


def test_continuations_are_joined() -> None:
    server = opened()
    parts = [frame(1, 1, 1, BLOCK[:3]), frame(9, 0, 1, BLOCK[3:7]), frame(9, 4, 1, BLOCK[7:])]

    ((kind, stream, _),) = server.receive(b"".join(parts), 0.0)

    assert (kind, stream.head.path) == (Kind.WHOLE, "/p")


def test_trailers_end_a_request() -> None:
    pair = Pair()
    pair.client.send_headers(1, POST)
    pair.client.send_data(1, b"abc")
    pair.client.send_headers(1, [("a", "b")], end_stream=True)

    assert [kind for kind, _, _ in pair.step()] == [Kind.BEGUN, Kind.DATA, Kind.ENDED]


def test_long_header_blocks_of_ours_are_continued() -> None:
    pair = Pair(MAX_HEADER_LIST_SIZE=100_000)
    stream = pair.ask(1)[0][1]
    long = b"\x88\x00\x01a\x7f\xe1\xd3\x03" + b"x" * 60_000

    pair.server.send_headers(stream, long, end=True)
    pair.step()

    assert any(isinstance(event, h2.events.ResponseReceived) for event in pair.told)


@pytest.mark.parametrize("size", [0, 100, 4_095, 65_536])
def test_peer_with_another_header_table_reads_every_answer(size: int) -> None:
    """RFC 7541 4.2: a smaller table must be acknowledged at the beginning of the next block."""
    pair = Pair(HEADER_TABLE_SIZE=size)

    for stream_id in (1, 3):
        answer(pair.server, pair.ask(stream_id)[0][1], b"body")
        pair.step()
        assert pair.answers(stream_id) == (b"body", True)
    pair.client.update_settings({h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0})
    pair.step()
    pair.server.send_headers(pair.ask(5)[0][1], FORM.head, end=True)
    pair.step()

    assert any(isinstance(event, h2.events.StreamEnded) and event.stream_id == 5 for event in pair.told)


def test_drain_answers_what_was_begun_and_refuses_what_comes_later() -> None:
    pair = Pair()
    first = pair.ask(1)[0][1]

    pair.server.drain()
    late = pair.server.receive(frame(1, 5, 3, SMALL), 0.0)  # sent before the client saw it
    assert [kind for kind, _, _ in late] == [Kind.WHOLE]
    pair.server.receive(frames.ping(b"draining", ack=True), 0.0)
    assert pair.server.receive(frame(1, 5, 5, SMALL), 0.0) == []
    for stream in (first, late[0][1]):
        assert not pair.server.is_drained
        answer(pair.server, stream, b"")

    assert pair.server.is_drained
    assert (frames.RST_STREAM, 0, 5, b"\0\0\0\7") in sent(pair.server.take())


def test_early_answer_stops_the_peer_without_an_error() -> None:
    server = opened()
    ((_, stream, _),) = server.receive(frame(1, 4, 1, BLOCK), 0.0)

    answer(server, stream, b"no")
    events = server.receive(frame(0, 0, 1, b"late") + frame(0, 1, 1, b"later"), 0.0)

    assert events == []
    assert not server.is_ended
    assert (frames.RST_STREAM, 0, 1, b"\0\0\0\0") in sent(server.take())


def test_cancelled_stream_is_dropped_and_its_answer_goes_nowhere() -> None:
    server = opened()
    ((_, stream, _),) = server.receive(frame(1, 5, 1, SMALL), 0.0)

    ((kind, dropped, _),) = server.receive(frames.reset(1, ErrorCode.CANCEL), 0.0)
    answer(server, stream, b"late")
    server.send_data(stream, b"late")
    server.reset(stream, ErrorCode.CANCEL)
    server.grant(stream, 10)

    assert (kind, dropped) == (Kind.DROPPED, stream)
    assert server.take() == b""
