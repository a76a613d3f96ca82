"""Plain requests over HTTP/1.1 take the lane, with those of gRPC; nobody can tell it from the answers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto
from tests.fakes import served_models as models
from tests.fakes.http_bench import (
    BOTH,
    HttpBench,
    asked,
    framed,
    plain,
    plain_written,
    rows,
    unlike,
    unlike_written,
    written,
)
from tests.fakes.native_bench import Writer

from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.inference.traits import Traits
from holdfast.serving import oip
from holdfast.serving.authorisation import rules_of
from holdfast.serving.native.http_exchange import HttpExchange
from holdfast.serving.protocols import Pending
from holdfast.serving.scheduler import ModelScheduler

OK = b"HTTP/1.1 200 OK"


@pytest.fixture(scope="module")
def sessions() -> dict[str, ModelSession]:
    made = {
        "m": models.perceptron(),
        "two": models.two_in_two_out(),
        "s": models.identity(TensorProto.STRING, ("n",)),
        "half": models.identity(TensorProto.FLOAT16, ("n", 4)),
        "bool": models.identity(TensorProto.BOOL, ("n", 4)),
    }
    quick = Traits(run_s=1e-5, run_elements=4, is_bounded=True)  # said, not measured: this machine may be busy
    apart = load_session(ModelSource(models.perceptron())).measured(quick)  # no rows of others, as nobody tried it
    return {"apart": apart, **{name: prepare_session(ModelSource(model)) for name, model in made.items()}}


Benches = tuple[HttpBench, HttpBench]


@pytest.fixture
def benches(sessions: dict[str, ModelSession]) -> Iterator[Benches]:
    made = HttpBench(sessions), HttpBench(sessions, memoise=False)
    yield made
    for bench in made:
        bench.close()


def test_answers_are_the_same_octets_with_and_without_the_lane(benches: Benches) -> None:
    requests = [
        each for turn in range(3) for each in (*plain(turn), *plain_written(turn), *unlike(), *unlike_written())
    ]

    mine, whole = ([said(bench, each) for each in requests] for bench in benches)

    assert [(requests[n], mine[n], whole[n]) for n in range(len(mine)) if mine[n] != whole[n]] == []
    assert [requests[n] for n in range(len(mine)) if not mine[n].startswith(b"HTTP/1.1 ")] == []
    counts = [bench.statistics.counts()[("m", "1")] for bench in benches]
    assert counts[0].requests == counts[1].requests
    assert counts[0].rows == counts[1].rows


def said(bench: HttpBench, request: bytes) -> bytes:
    """The answer, on a new connection where the last was closed."""
    if bench.http_wire.is_closed:
        bench.connect()
    return bench.said(request)


def test_plain_requests_take_the_lane(benches: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benches[0]
    monkeypatch.setattr(HttpExchange, "start", lambda *_: pytest.fail("a plain request went the whole way"))

    for turn in range(3):
        for request in (*plain(turn), *plain_written(turn)):
            assert OK in bench.said(request)
            cut = request.index(b"\r\n\r\n") + 6  # as libraries send: the head, then the body
            assert OK in bench.said(request[:cut], request[cut:])


@pytest.mark.parametrize("terms", [{"timeout": 9_000_000}, {"priority": 1}])
def test_requests_with_terms_go_to_the_queue(
    benches: Benches, terms: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, submit = benches[0], ModelScheduler.submit
    seen: list[Pending] = []

    def noted(scheduler: ModelScheduler, batch: Sequence[Pending]) -> None:
        seen.extend(batch)
        submit(scheduler, batch)

    monkeypatch.setattr(ModelScheduler, "submit", noted)

    for _ in range(2):
        assert OK in bench.said(asked(rows(1), parameters={**BOTH, **terms}))
        assert OK in bench.said(written([[1, 2, 3, 4]], shape=(1, 4), parameters=terms))

    assert len(seen) == 4


def test_wrong_numbers_spoil_nothing_for_right_ones(benches: Benches, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = benches[0]
    assert b"HTTP/1.1 400" in bench.said(written([1, 2], shape=(1, 4)))
    monkeypatch.setattr(HttpExchange, "start", lambda *_: pytest.fail("a plain request went the whole way"))

    assert OK in bench.said(written([1, 2, 3, 4], shape=(1, 4)))


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 2_000), max_size=6), picks=st.lists(st.integers(0, 30), min_size=1, max_size=6))
def test_pipelined_requests_are_answered_the_same_however_they_are_cut(
    pipelines: Benches, cuts: list[int], picks: list[int]
) -> None:
    data = b"".join([*plain(n), *plain_written(n)][pick] for n, pick in enumerate(picks))
    edges = [0, *sorted(cuts), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(edges)]
    told = []

    for bench in pipelines:
        bench.connect()
        told.append(bench.said(*pieces, *[b""] * len(picks)))

    assert told[0] == told[1]
    assert told[0].count(OK) == len(picks)


@pytest.fixture(scope="module")
def pipelines(sessions: dict[str, ModelSession]) -> Iterator[Benches]:
    made = HttpBench(sessions), HttpBench(sessions, memoise=False)
    yield made
    for bench in made:
        bench.close()


def test_calls_of_both_protocols_share_a_run_and_are_counted_one_by_one(benches: Benches) -> None:
    bench, writer = benches[0], Writer()
    message = oip.encode_request(TensorRequest("m", "", "g", {"x": rows(1)}))
    bench.peer.receive(writer.call(message))
    bench.said(asked(rows(2)))
    bench.tap.events.clear()

    bench.peer.receive(writer.call(message))
    bench.http.receive(asked(rows(2, seed=5), request_id="h"))
    over_grpc = bench.turn()

    assert b"grpc-status\x010" in over_grpc
    assert OK in bench.http_wire.data
    (event,) = bench.tap.events
    assert (list(event.request_ids), event.outcome) == (["g", "h"], "ok")
    assert event.inputs is not None
    assert event.inputs["x"].tolist() == np.concatenate([rows(1), rows(2, seed=5)]).tolist()
    counts = bench.statistics.counts()[("m", "1")]
    assert (counts.requests, counts.rows, counts.runs) == (4, 6, 2)


def test_request_of_gRPC_hidden_in_a_body_is_refused(benches: Benches) -> None:  # noqa: N802  # its name
    message = oip.encode_request(TensorRequest("m", "", "", {"x": rows(1)}))
    body = b"\0" + len(message).to_bytes(4, "big") + message

    answers = [bench.said(framed(body[:9], body[9:])) for bench in benches]

    assert answers[0] == answers[1]
    assert b"HTTP/1.1 400" in answers[0]


def test_swapped_model_answers_from_the_next_request_on(benches: Benches, sessions: dict[str, ModelSession]) -> None:
    bench = benches[0]
    assert b'"model_version":"1"' in bench.said(asked(rows(1)))

    bench.pool.swap("m", "2", sessions["m"])
    assert b'"model_version":"2"' in bench.said(asked(rows(1)))
    bench.pool.swap("m", "3", sessions["two"])
    assert b"wrong inputs: expected a, b; got x" in bench.said(asked(rows(1)))
    bench.pool.remove("m")

    assert b"HTTP/1.1 404" in bench.said(asked(rows(1)))


def test_the_same_bytes_twice_are_computed_twice(benches: Benches) -> None:
    bench = benches[0]

    assert bench.said(asked(rows(1))) == bench.said(asked(rows(1)))
    assert bench.statistics.counts()[("m", "1")].runs == 2


def test_callers_without_a_right_are_refused_and_with_one_take_the_lane(sessions: dict[str, ModelSession]) -> None:
    token = "t" * 32
    bench = HttpBench(sessions, rules=rules_of(tokens=[token]))
    try:
        for _ in range(2):
            assert OK in bench.said(asked(rows(1), f"Authorization: Bearer {token}"))
            assert b"HTTP/1.1 401" in bench.said(asked(rows(1)))
            assert b"HTTP/1.1 401" in bench.said(asked(rows(1), f"Authorization: Bearer {token[:-1]}"))
    finally:
        bench.close()


def test_more_requests_than_may_be_in_flight_are_refused(benches: Benches) -> None:
    bench = benches[0]
    bench.said(asked(rows(1)))
    bench.front.tick._lane._max_calls = 0
    bench.front.tick._in_flight.limit = 0

    assert b"HTTP/1.1 429" in bench.said(asked(rows(1)))


@pytest.mark.parametrize("how", ["asked for", "drained"])
def test_last_answer_of_a_connection_says_so(benches: Benches, how: str) -> None:
    told = []
    for bench in benches:
        bench.said(asked(rows(1)))
        bench.http.receive(asked(rows(1), *(["Connection: close"] if how == "asked for" else [])))
        if how == "drained":
            bench.http.drain()
        bench.turn()
        told.append(bench.said(asked(rows(1))))
        assert bench.http_wire.is_closed

    assert told[0] == told[1]
    assert told[0].count(OK) == 1
    assert b"\r\nConnection: close\r\n\r\n" in told[0]


def test_nothing_is_said_to_a_peer_that_left(benches: Benches) -> None:
    bench = benches[0]
    bench.said(asked(rows(1)))

    bench.http.receive(asked(rows(1)))
    bench.http.lost()

    assert bench.said() == b""
    bench.turn()
    assert bench.http_wire.data == b""


def test_time_between_requests_counts_from_the_last_one(benches: Benches) -> None:
    bench = benches[0]
    idle_s = bench.front._backend.options.http1.idle_timeout_s

    for _ in range(3):
        bench.said(asked(rows(1)))
        bench.clock.advance(idle_s * 0.9)
        assert not bench.http.is_overdue(bench.clock.monotonic_s())
    bench.clock.advance(idle_s * 0.2)

    assert bench.http.is_overdue(bench.clock.monotonic_s())
