"""What one HTTP/2 connection can make us hold: less than the figure that is stated."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.http2_server import FORM, SMALL, answer, opened, sent
from tests.fakes.native_bench import NativeBench, Writer

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import frame
from holdfast.serving.http2.limits import MAX_SENT_FRAME_BYTES, Http2Limits
from holdfast.serving.http2.sender import BURST_BYTES
from holdfast.serving.http2.stream import Stream

PING = frames.ping(b"12345678", ack=False)
NO_WINDOW = frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\0")
CALM = ErrorCode.ENHANCE_YOUR_CALM
README = Path(__file__).parents[3] / "runtime" / "README.md"


def asked(server: Http2Connection, count: int) -> list[Stream]:
    """The streams of so many requests without a body."""
    events = server.receive(b"".join(frame(1, 5, 2 * n + 1, SMALL) for n in range(count)), 0.0)
    return [stream for _, stream, _ in events]


def resets(data: bytes) -> list[int]:
    """The streams that were ended with ENHANCE_YOUR_CALM."""
    return [n for kind, _, n, payload in sent(data) if kind == frames.RST_STREAM and payload == CALM.to_bytes(4, "big")]


def test_answers_that_wait_are_bounded_also_when_they_were_asked_for_at_once() -> None:
    server = opened(Http2Limits(max_unsent_bytes=100_000))
    server.receive(NO_WINDOW, 0.0)

    for stream in asked(server, 32):
        answer(server, stream, bytes(20_000))

    assert server.unsent_bytes <= 100_000
    assert resets(server.take()) == [2 * n + 1 for n in range(4, 32)]  # four, with their trailers, are below the bound
    assert {fault.code for fault in server.faults} == {CALM}
    assert len(server.streams) == 4


def test_refused_answers_leave_room_for_later_ones() -> None:
    server = opened(Http2Limits(max_unsent_bytes=1_000))
    server.receive(NO_WINDOW, 0.0)
    for stream in asked(server, 3):
        answer(server, stream, bytes(900))
    server.receive(frames.window_update(1, 900), 0.0)
    assert server.take()

    ((_, stream, _),) = server.receive(frame(1, 5, 7, SMALL), 0.0)
    answer(server, stream, bytes(900))

    assert set(server.streams) == {7}


@pytest.mark.parametrize(
    "makes_room",
    [
        frames.window_update(0, 1),
        frames.window_update(1, 1),
        frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\1"),
        frame(frames.RST_STREAM, 0, 1, b"\0\0\0\10"),
    ],
    ids=["window", "window_of_a_stream", "settings", "reset"],
)
def test_connection_is_full_from_the_first_refused_answer_until_there_is_room(makes_room: bytes) -> None:
    server = opened(Http2Limits(max_unsent_bytes=1_000))
    server.receive(NO_WINDOW, 0.0)
    first, second = asked(server, 2)
    answer(server, first, bytes(900))
    assert not server.is_full

    answer(server, second, bytes(900))

    assert server.is_full
    server.receive(PING, 0.0)
    assert server.is_full
    server.receive(makes_room, 0.0)
    assert not server.is_full


def test_connection_is_not_full_any_more_when_what_waited_is_sent() -> None:
    server = opened(Http2Limits(max_unsent_bytes=1_000))
    first, second = asked(server, 2)
    server.pause()
    for stream in (first, second):
        answer(server, stream, bytes(900))
    assert server.is_full

    server.resume()
    server.take()

    assert not server.is_full


def test_at_most_one_run_is_for_nothing_where_answers_are_not_taken() -> None:
    pool = ModelPool()
    pool.swap("m", "1", prepare_session(ModelSource(models.scale(2.0))))
    bench, writer = NativeBench(pool), Writer()
    request = oip.encode_request(TensorRequest("m", "", "", {"x": np.ones((1, 4), dtype=np.float32)}))
    bench.peer.receive(NO_WINDOW)
    bench.peer.machine._sender._max_unsent_bytes = 100

    said = []
    for _ in range(4):
        bench.peer.receive(writer.call(request))
        said.append(bench.turn())
    bench.close()

    assert [event.outcome for event in bench.tap.events].count("ok") == 2
    assert resets(said[1]) == [3]
    assert all(b"answers to this connection are not taken; read them first" in data for data in said[2:])


def test_one_answer_may_wait_however_large_it_is() -> None:
    server = opened(Http2Limits(max_unsent_bytes=1_000))
    (stream, other) = asked(server, 2)
    server.receive(frames.window_update(0, 2_000_000) + frames.window_update(1, 2_000_000), 0.0)

    answer(server, stream, bytes(1_500_000))
    answer(server, other, bytes(1_500_000))
    data = server.take() + server.take()

    assert sum(len(payload) for kind, _, n, payload in sent(data) if (kind, n) == (frames.DATA, 1)) == 1_500_000
    assert resets(data) == [3]


def test_large_answers_of_one_turn_wait_beyond_a_burst() -> None:
    server = opened(Http2Limits(max_unsent_bytes=1_000))
    streams = asked(server, 4)
    server.receive(frames.window_update(0, 4_000_000), 0.0)
    for stream in streams:
        server.receive(frames.window_update(stream.id, 1_000_000), 0.0)

    for stream in streams:
        answer(server, stream, bytes(400_000))
    data = server.take()

    assert len(data) < BURST_BYTES + 400_000 + 2 * 16_384
    assert resets(data) == [7]  # two go out, one waits


def test_messages_of_a_long_call_are_bounded_too() -> None:
    server = opened(Http2Limits(max_unsent_bytes=10_000))
    server.receive(NO_WINDOW, 0.0)
    (stream,) = asked(server, 1)
    server.send_headers(stream, FORM.head, end=False)

    for _ in range(100):
        server.send_data(stream, bytes(1_000))

    assert stream.local_ended
    assert server.unsent_bytes == 0
    assert resets(server.take()) == [1]


def test_answers_of_one_turn_are_bounded_where_windows_and_frames_are_wide_open() -> None:
    server = opened()
    wide = b"\0\4\x7f\xff\xff\xff" + b"\0\5\0\xff\xff\xff"
    server.receive(frame(frames.SETTINGS, 0, 0, wide) + frames.window_update(0, 2**31 - 65_536), 0.0)

    for stream in asked(server, 20):
        answer(server, stream, bytes(300_000))
    data = b"".join(iter(server.take, b""))

    sizes = [len(payload) for kind, _, _, payload in sent(data) if kind == frames.DATA]
    assert sum(sizes) == 20 * 300_000
    assert max(sizes) == MAX_SENT_FRAME_BYTES


def test_readme_states_the_figure() -> None:
    stated = f"at most {Http2Limits().memory_bytes / 1024**2:.0f} MiB"

    assert stated in README.read_text(encoding="utf-8")


def test_memory_of_a_connection_stays_below_the_stated_bound() -> None:
    limits = Http2Limits(max_streams=32, max_unsent_bytes=0)
    server = opened(limits)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    for number in range(32):  # every stream open with the largest head and as much of a body as the window allows
        stream_id = 2 * number + 1
        head = b"".join(b"\x00\x03%03d\x7f\xa1\x1e" % n + bytes([65 + number % 26]) * 4_000 for n in range(3))
        server.receive(frame(1, 4, stream_id, SMALL + head), 0.0)
        for _ in range(15):
            server.receive(frame(0, 0, stream_id, bytes(16_384)), 0.0)
    server.receive(frame(1, 0, 99, bytes(16_384)) + frame(9, 0, 99, bytes(16_383))[:-1], 0.0)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert len(server.streams) == 32
    assert held < limits.memory_bytes
