"""A stream of a client that reads no answers waits with it, and loses none of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator

import hpack
import pytest
from tests.fakes.http2_server import sent
from tests.fakes.native_bench import FIELDS, NativeBench
from tests.fakes.serving import TIMEOUT_S

from holdfast.inference.pool import ModelPool
from holdfast.serving import reflection_v1_pb2
from holdfast.serving.grpc_wire import PREFIX_BYTES, MessageReader, framed_prefix
from holdfast.serving.http2 import frames
from holdfast.serving.http2.frames import frame
from holdfast.serving.native.long_calls import STREAM_BACKLOG_BYTES
from holdfast.serving.reflection import own_reflection
from holdfast.serving.rpc import REFLECTION_V1

QUESTIONS = 400  # small ones, each with an answer 250 times as long
ASK = reflection_v1_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService")
ANSWER = own_reflection().answer_v1(ASK.SerializeToString())
NO_WINDOW = frame(frames.SETTINGS, 0, 0, b"\0\4\0\0\0\0")
WIDE = b"".join(frames.window_update(stream, 2**29) for stream in (0, 1))


@pytest.fixture
def bench() -> Iterator[NativeBench]:
    """One whose client asks for much and leaves no window for the answers."""
    made = NativeBench(ModelPool())
    fields = [(name, REFLECTION_V1 if name == ":path" else value) for name, value in FIELDS]
    made.peer.receive(NO_WINDOW + frame(frames.HEADERS, frames.END_HEADERS, 1, hpack.Encoder().encode(fields)))
    question = ASK.SerializeToString()
    asked = (framed_prefix(len(question)) + question) * QUESTIONS
    for at in range(0, len(asked), 16_384):
        made.peer.receive(frame(frames.DATA, 0, 1, asked[at : at + 16_384]))
    yield made
    made.close()


def turned(bench: NativeBench, until: Callable[[bytes], bool]) -> bytes:
    """What is written until something holds of it."""
    data, deadline_s = b"", time.monotonic() + TIMEOUT_S
    while not until(data):
        assert time.monotonic() < deadline_s
        bench.front._loop.run_until_complete(asyncio.sleep(0))  # what the threads that answer have posted
        data += bench.turn()
    return data


def answers(data: bytes) -> list[bytes]:
    reader = MessageReader(STREAM_BACKLOG_BYTES)
    told = reader.feed(b"".join(payload for kind, _, stream, payload in sent(data) if (kind, stream) == (0, 1)))
    return [message[PREFIX_BYTES:] for message in told]


def test_client_that_reads_nothing_cannot_make_answers_pile_up(bench: NativeBench) -> None:
    turned(bench, lambda _: bool(bench.peer._held))

    assert STREAM_BACKLOG_BYTES < bench.peer.machine.unsent_bytes < STREAM_BACKLOG_BYTES + 50_000


def test_every_question_is_answered_once_the_client_reads(bench: NativeBench) -> None:
    turned(bench, lambda _: bool(bench.peer._held))

    bench.peer.receive(WIDE)
    data = turned(bench, lambda data: len(data) > QUESTIONS * len(ANSWER))

    assert answers(data) == [ANSWER] * QUESTIONS
    assert not bench.peer._held


def test_client_that_leaves_leaves_nothing_behind(bench: NativeBench) -> None:
    turned(bench, lambda _: bool(bench.peer._held))

    bench.peer.lost()

    assert not bench.peer._held
    bench.turn()
