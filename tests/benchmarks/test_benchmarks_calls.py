"""Framed calls of the serving benchmarks, and the generator that replays them, against a server in this process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import numpy as np
import pytest
from benchmarks.process import cpu_ns, on_core, pss_mb, tree
from benchmarks.replay import replaying
from benchmarks.serving_calls import check_answers, grpc_body, read_answers, varied_calls, write_calls
from benchmarks.serving_models import MODELS

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.inference.tensors import TensorResponse
from holdfast.serving.oip import decode_request, encode_response
from holdfast.serving.server import Address, Server, ServerOptions

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="the generator needs a C compiler")


@pytest.fixture
def address() -> Iterator[str]:
    pool = ModelPool()
    for name in ("tiny0", "tiny1"):
        pool.swap(name, "1", prepare_session(ModelSource(MODELS[name]())))
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0)))
    yield str(server.start())
    server.stop(2.0)


@pytest.mark.parametrize("style", ["c-core", "go"])
def test_calls_are_what_an_independent_http2_reads(style: str) -> None:
    greeting, calls = varied_calls(("tiny0",), style, count=3)  # type: ignore[arg-type]  # one of the two styles
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    events = list(connection.receive_data(greeting))

    for place, call in enumerate(calls):
        events += connection.receive_data(with_stream(call.frames, 2 * place + 3))

    heads = [dict(event.headers) for event in events if isinstance(event, h2.events.RequestReceived)]
    bodies = [event.data for event in events if isinstance(event, h2.events.DataReceived)]
    assert len({head[b"traceparent"] for head in heads[1:]}) == 3
    assert [decode_request(body[5:]).request_id for body in bodies[1:]] == [call.request_id for call in calls]
    assert [decode_request(body[5:]).inputs["x"].shape for body in bodies[1:]] == [(1, 16), (2, 16), (3, 16)]


def test_calls_wrong_answers_are_seen() -> None:
    _, calls = varied_calls(("tiny0",), count=1)
    right = TensorResponse("tiny0", "1", calls[0].request_id, {"y": calls[0].expected})
    other_id = TensorResponse("tiny0", "1", "other", {"y": calls[0].expected})
    other_y = TensorResponse("tiny0", "1", calls[0].request_id, {"y": np.nextafter(calls[0].expected, np.float32(9))})

    check_answers(calls, [grpc_body(encode_response(right))])
    for wrong in (other_id, other_y):
        with pytest.raises(RuntimeError, match="call 0"):
            check_answers(calls, [grpc_body(encode_response(wrong))])


def test_calls_dumped_answers_are_read_again(tmp_path: Path) -> None:
    write_calls(tmp_path / "f", b"", [])
    (tmp_path / "answers").write_bytes(b"\2\0\0\0ab" + b"\0\0\0\0" + b"\1\0\0\0c")

    assert (tmp_path / "f").read_bytes() == bytes(8)
    assert read_answers(tmp_path / "answers") == [b"ab", b"", b"c"]


@needs_compiler
def test_replay_answers_every_call_and_checks_it(address: str) -> None:
    greeting, calls = varied_calls(("tiny0", "tiny1"), count=40)

    with replaying(address, greeting, calls) as replay:
        closed = replay.closed(8, count=200)
        paced = replay.open(2_000, 20)

    assert (closed["answered"], paced["answered"]) == (200, 20)
    assert 0 < closed["p50_us"] <= closed["p99_us"] <= closed["max_us"]


@needs_compiler
def test_replay_refuses_another_models_answer(address: str) -> None:
    greeting, calls = varied_calls(("tiny0",), count=4)
    _, others = varied_calls(("tiny1",), count=4)

    swapped = [replace(call, expected=other.expected) for call, other in zip(calls, others, strict=True)]
    with pytest.raises(RuntimeError, match="another tensor"):
        with replaying(address, greeting, swapped):
            pass


@needs_compiler
def test_replay_says_when_a_call_is_refused(address: str) -> None:
    greeting, calls = varied_calls(("tiny2",), count=1)

    with pytest.raises(RuntimeError, match="refused"):
        with replaying(address, greeting, calls):
            pass


def test_process_counts_itself() -> None:
    before = cpu_ns(os.getpid())
    with on_core(min(os.sched_getaffinity(0))):
        assert len(os.sched_getaffinity(0)) == 1
        sum(range(1_000_000))

    assert cpu_ns(os.getpid()) > before
    assert os.getpid() in tree(os.getpid())
    assert pss_mb(os.getpid()) > 10


def with_stream(frames: bytes, stream_id: int) -> bytes:
    """The frames of a call with their stream written in."""
    at, out = 0, bytearray(frames)
    while at < len(out):
        size = int.from_bytes(out[at : at + 3], "big")
        out[at + 5 : at + 9] = stream_id.to_bytes(4, "big")
        at += 9 + size
    return bytes(out)
