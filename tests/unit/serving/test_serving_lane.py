"""Calls that came together share a run, from octets to octets; nobody can tell it from the answers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tests.fakes import served_models as models
from tests.fakes.native_bench import NativeBench, Writer

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSession, ModelSource
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.authorisation import AccessRules, rules_of
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import reset
from holdfast.serving.native.http2_peer import Http2Peer

TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"


def two_of_each() -> bytes:
    """y = a + b, z = a * 2, for rows of three numbers."""
    rows = ["n", 3]
    nodes = [helper.make_node("Add", ["a", "b"], ["y"]), helper.make_node("Mul", ["a", "two"], ["z"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, rows) for name in "ab"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, rows) for name in "yz"]
    two = numpy_helper.from_array(np.array([2.0], dtype=np.float32), "two")
    graph = helper.make_graph(nodes, "two_of_each", inputs, outputs, [two])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    return bytes(onnx.ModelProto.SerializeToString(model))


@pytest.fixture(scope="module")
def session() -> ModelSession:
    made = prepare_session(ModelSource(two_of_each()))
    assert made.traits.mixing.is_allowed, made.traits.mixing.reason
    return made


Benches = tuple[NativeBench, NativeBench]


def bench_of(session: ModelSession, *, memoise: bool, rules: AccessRules | None = None) -> NativeBench:
    pool = ModelPool()
    pool.swap("m", "1", session)
    return NativeBench(pool, memoise=memoise, rules=rules)


@pytest.fixture
def benches(session: ModelSession) -> Iterator[Benches]:
    made = bench_of(session, memoise=True), bench_of(session, memoise=False)
    yield made
    for bench in made:
        bench.close()


def message_of(rows: int, request_id: str = "", *, seed: int = 0, outputs: tuple[str, ...] = ()) -> bytes:
    rng = np.random.default_rng(seed)
    inputs = {name: rng.standard_normal((rows, 3)).astype(np.float32) for name in "ab"}
    return oip.encode_request(TensorRequest("m", "", request_id, inputs, outputs))


def many_calls(writer: Writer) -> list[bytes]:
    """Three turns: the first fills the header table, the second teaches, the third is what a client sends all day."""
    unlike = [
        (oip.encode_request(TensorRequest("nobody", "", "u", {"a": np.ones((1, 3), np.float32)})), ()),
        (message_of(2, "wrong output", outputs=("q",)), ()),
        (message_of(2, "bad timeout"), (("grpc-timeout", "soon"),)),
        (message_of(2, "late"), (("grpc-timeout", "0n"),)),
        (message_of(2, "odd trace"), (("traceparent", "00-zz"),)),
        (message_of(2, "cut")[:-1], ()),
        (b"", ()),
        (message_of(40, "too many rows to share"), ()),
        (oip.encode_request(TensorRequest("m", "7", "no such version", {"a": np.ones((1, 3), np.float32)})), ()),
        (oip.encode_request(TensorRequest("m", "", "wide", {n: np.ones((1, 4), np.float32) for n in "ab"})), ()),
        (oip.encode_request(TensorRequest("m", "", "int", {n: np.ones((1, 3), np.int32) for n in "ab"})), ()),
    ]
    turns = []
    for turn in range(3):
        calls = [
            (
                message_of(1 + n % 7, "i" * (n % 4), seed=n),
                (("grpc-timeout", f"{n + 1}S"), ("traceparent", TRACE)),
            )
            for n in range(turn * 12)
        ]
        calls += [(message_of(2, "one", seed=n, outputs=("z",)), ()) for n in range(3)]
        turns.append(b"".join(writer.call(message, *more) for message, more in [*calls, *unlike]))
    return turns


def test_answers_are_the_same_octets_with_and_without_the_lane(benches: Benches) -> None:
    turns = many_calls(Writer())
    answers = []

    for bench in benches:
        written = []
        for data in turns:
            bench.peer.receive(data)
            written.append(by_stream(bench.turn()))
        answers.append(written)

    for mine, whole in zip(*answers, strict=True):
        assert mine.keys() == whole.keys()
        assert [n for n in mine if mine[n] != whole[n]] == []
    assert sum(map(len, answers[0])) > 60  # every call was answered


def by_stream(data: bytes) -> dict[int, bytes]:
    """What each stream got; their order is free."""
    streams: dict[int, bytes] = {}
    while data:
        size = int.from_bytes(data[:3], "big")
        stream_id = int.from_bytes(data[5:9], "big")
        streams[stream_id] = streams.get(stream_id, b"") + data[: 9 + size]
        data = data[9 + size :]
    return streams


def test_calls_of_one_turn_share_a_run_and_are_counted_one_by_one(benches: Benches) -> None:
    bench, writer = benches[0], Writer()
    for _ in range(2):
        bench.peer.receive(writer.call(message_of(1, "first")))
        bench.turn()
    bench.tap.events.clear()

    bench.peer.receive(b"".join(writer.call(message_of(rows, f"r{rows}", seed=rows)) for rows in (1, 2, 3)))
    bench.turn()

    (event,) = bench.tap.events
    assert (list(event.request_ids), len(event.latencies_s), event.outcome) == (["r1", "r2", "r3"], 3, "ok")
    assert event.inputs is not None
    assert event.outputs is not None
    assert {array.shape for array in (*event.inputs.values(), *event.outputs.values())} == {(6, 3)}
    counts = bench.statistics.counts()[("m", "1")]
    assert (counts.requests, counts.rows, counts.runs, counts.batches[6].runs) == (5, 8, 3, 1)


def test_swapped_model_answers_from_the_next_turn_on(benches: Benches, session: ModelSession) -> None:
    bench, writer = benches[0], Writer()
    bench.peer.receive(writer.call(message_of(1)))
    bench.turn()

    bench.pool.swap("m", "2", session)
    bench.peer.receive(writer.call(message_of(1)))
    assert b"\x12\x012" in bench.turn()  # field 2 of the answer: the version
    bench.pool.remove("m")
    bench.peer.receive(writer.call(message_of(1)))

    assert b"Request for unknown model: 'm' is not found" in bench.turn()


def test_model_that_takes_other_rows_after_a_swap_is_asked_anew(benches: Benches) -> None:
    quick, slow = benches
    writers = Writer(), Writer()
    for bench, writer in zip(benches, writers, strict=True):
        for _ in range(2):
            bench.peer.receive(writer.call(message_of(2)))
            bench.turn()
        bench.pool.swap("m", "1", prepare_session(ModelSource(models.scale(2.0))))

    asked = [writer.call(message_of(2)) for writer in writers]
    for bench, call in zip(benches, asked, strict=True):
        bench.peer.receive(call)

    refused = quick.turn()
    assert refused == slow.turn()
    assert b"wrong inputs" in refused


@pytest.mark.parametrize("timeout", ["5S", "soon", "0n", None])
def test_call_in_pieces_is_answered_the_same_with_and_without_the_lane(benches: Benches, timeout: str | None) -> None:
    told = []
    for bench in benches:
        writer, octets = Writer(), b""
        for turn in range(3):
            more = () if timeout is None else (("grpc-timeout", timeout),)
            sent = writer.call(message_of(2, f"id-{turn}"), *more, cut=40)
            for at in range(0, len(sent), 70):
                bench.peer.receive(sent[at : at + 70])
                octets += bench.turn()
        told.append(octets)

    assert told[0] == told[1]
    assert len(told[0]) > 0


def test_cancelled_call_gets_no_answer(benches: Benches) -> None:
    bench, writer = benches[0], Writer()
    bench.peer.receive(writer.call(message_of(1)))
    bench.turn()

    data = writer.call(message_of(1)) + reset(writer.stream_id, ErrorCode.CANCEL)
    bench.peer.receive(data)

    assert bench.turn() == b""


def test_callers_without_a_right_are_refused_and_with_one_take_the_lane(session: ModelSession) -> None:
    token = "t" * 32
    bench, writer = bench_of(session, memoise=True, rules=rules_of(tokens=[token])), Writer()
    allowed = ("authorization", f"Bearer {token}")
    try:
        for more in ((), (allowed,)):  # the first two fill the table and teach
            bench.peer.receive(writer.call(message_of(1), *more))
            bench.turn()
        bench.tap.events.clear()

        both = [writer.call(message_of(1, n), allowed, ("grpc-timeout", "9S")) for n in "ab"]
        bench.peer.receive(b"".join(both))
        answered = bench.turn()
        bench.peer.receive(writer.call(message_of(1), ("grpc-timeout", "9S")))
        refused = bench.turn()
    finally:
        bench.close()

    assert answered.count(b"grpc-status\x010") == 2
    assert list(bench.tap.events[0].request_ids) == ["a", "b"]
    assert b"grpc-status\x0216" in refused


def test_more_calls_than_may_be_in_flight_are_refused(session: ModelSession) -> None:
    bench, writer = bench_of(session, memoise=True), Writer()
    bench.front.tick._lane._max_calls = 2
    bench.front.tick._in_flight.limit = 0
    try:
        bench.peer.receive(b"".join(writer.call(message_of(1)) for _ in range(3)))
        written = bench.turn()
    finally:
        bench.close()

    assert written.count(b"grpc-status\x010") == 2
    assert written.count(b"grpc-status\x018") == 1


@pytest.mark.parametrize("cut", [1 << 14, 50])
def test_lane_takes_what_it_is_made_for(benches: Benches, monkeypatch: pytest.MonkeyPatch, cut: int) -> None:
    bench, writer = benches[0], Writer()
    monkeypatch.setattr(Http2Peer, "infer", lambda *_: pytest.fail("a plain call went the whole way"))

    for turn in range(3):
        more = (("grpc-timeout", f"{turn + 1}S"), ("traceparent", TRACE))
        bench.peer.receive(writer.call(message_of(3, f"r{turn}"), *more, cut=cut))
        assert b"grpc-status\x010" in bench.turn()
