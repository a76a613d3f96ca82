"""Plain requests over HTTP/1.1 take the lane, with those of gRPC; nobody can tell it from the answers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.native_bench import NativeBench, Writer
from tests.fakes.wire import Wire

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSession, ModelSource
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.authorisation import AccessRules, rules_of
from holdfast.serving.native.backend import PeerFacts
from holdfast.serving.native.http1_peer import Http1Peer
from holdfast.serving.native.http_exchange import HttpExchange

TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"
BOTH = {"binary_data_output": True}
OK = b"HTTP/1.1 200 OK"


class HttpBench(NativeBench):
    """The same front, and one peer that speaks HTTP/1.1."""

    def __init__(self, sessions: dict[str, ModelSession], *, memoise: bool = True, rules: AccessRules | None = None):
        pool = ModelPool()
        for name, session in sessions.items():
            pool.swap(name, "1", session)
        super().__init__(pool, memoise=memoise, rules=rules)
        self.connect()

    def connect(self) -> None:
        """Another connection in place of the last."""
        self.http_wire = Wire()
        self.http = Http1Peer(self.front._backend, self.http_wire, PeerFacts(), self.clock.monotonic_s())

    def said(self, *pieces: bytes) -> bytes:
        """What comes back to what is sent, a turn after each piece."""
        for piece in pieces:
            self.http.receive(piece)
            self.turn()
        data, self.http_wire.data = self.http_wire.data, b""
        return data


@pytest.fixture(scope="module")
def sessions() -> dict[str, ModelSession]:
    made = {"m": models.perceptron(), "two": models.two_in_two_out(), "s": models.identity(8, ("n",))}
    return {name: prepare_session(ModelSource(model)) for name, model in made.items()}


Benches = tuple[HttpBench, HttpBench]


@pytest.fixture
def benches(sessions: dict[str, ModelSession]) -> Iterator[Benches]:
    made = HttpBench(sessions), HttpBench(sessions, memoise=False)
    yield made
    for bench in made:
        bench.close()


def rows(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def framed(header: bytes, raw: bytes = b"", *fields: str, path: str = "m", length: int | None = None) -> bytes:
    """A request to infer, from its JSON and its tensors."""
    lines = [
        f"POST /v2/models/{path}/infer HTTP/1.1",
        "Host: h",
        f"Inference-Header-Content-Length: {len(header) if length is None else length}",
        *fields,
        f"Content-Length: {len(header) + len(raw)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + header + raw


def asked(x: np.ndarray, *fields: str, request_id: str | None = None, path: str = "m", **more: object) -> bytes:
    """As most libraries write it: the id first."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    named = {} if request_id is None else {"id": request_id}
    top: dict[str, object] = {**named, "inputs": [tensor], "parameters": BOTH, **more}
    return framed(json.dumps(top).encode(), x.tobytes(), *fields, path=path)


def tensor_of(name: str, x: np.ndarray, datatype: str) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}


def two_asked(count: int, outputs: Sequence[object] = ()) -> bytes:
    a, b = np.arange(count), np.arange(count) + 7
    inputs = [tensor_of("a", a, "INT64"), tensor_of("b", b, "INT64")]
    top = {"id": "t", "inputs": inputs, "parameters": BOTH, **({"outputs": outputs} if outputs else {})}
    return framed(json.dumps(top).encode(), a.tobytes() + b.tobytes(), path="two")


def unlike() -> list[bytes]:
    """What is no plain request, or one that is refused."""
    x = rows(2)
    raw = x.tobytes()
    tensor = json.dumps(tensor_of("x", x, "FP32"))
    binary = '"parameters":{"binary_data_output":true}'
    return [
        framed(f'{{"id":"a","inputs":[{tensor}],{binary},"id":"b"}}'.encode(), raw),
        framed(f'{{"id":"c","inputs":[{tensor}],{binary},"\\u0069d":"d"}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],{binary},"id":"last"}}'.encode(), raw),
        framed(f'{{"id":7,"inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"\\n\\"","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"\t","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"\x7f","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"gr\u00fcn","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(b'{"id":"\xff"}', raw),
        framed(f'{{"id":"never ends, {tensor}'.encode(), raw),
        framed(f'{{"id": "wide", "inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}]}}'.encode(), raw),  # JSON comes back
        framed(
            f'{{"inputs":[{tensor}],{binary},"outputs":[{{"name":"y","parameters":{{"binary_data":false}}}}]}}'.encode(),
            raw,
        ),
        framed(f'{{"inputs":[{tensor}],"outputs":[{{"name":"y","parameters":{{"binary_data":true}}}}]}}'.encode(), raw),
        framed(
            f'{{"inputs":[{tensor}],{binary},"outputs":[{{"name":"y","parameters":{{"classification":2}}}}]}}'.encode(),
            raw,
        ),
        framed(f'{{"inputs":[{tensor}],{binary},"outputs":[{{"name":"q"}}]}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true,"timeout":9}}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true,"priority":2}}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true,"sequence_id":2}}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],{binary}}}'.encode(), raw[:-1]),
        framed(f'{{"inputs":[{tensor}],{binary}}}'.encode(), raw + b"x"),
        framed(f'{{"inputs":[{tensor},{tensor}],{binary}}}'.encode(), raw + raw),
        framed(b"", raw),
        framed(b"", raw, length=9_999),
        framed(b"{}", raw, length=-1),  # type: ignore[arg-type]
        asked(x, path="nobody"),
        asked(x, path="m/versions/7"),
        asked(x, path="m/versions/1"),
        asked(rows(40)),
        asked(rows(0)),
        asked(np.ones((1, 5), np.float32)),
        asked(x, "Accept-Encoding: gzip"),
        asked(rows(30), "Accept-Encoding: gzip", outputs=[{"name": "y"}] * 2),
        asked(x, "Content-Encoding: gzip"),
        asked(x, "traceparent: 00-zz"),
        asked(x, f"TraceParent: {TRACE}"),
        asked(x, f"traceparent: {TRACE}", "TRACEPARENT: 00-zz"),
        asked(x, "traceparent: "),
        asked(x).replace(b"POST", b"GET"),
        asked(x).replace(b"POST", b"HEAD"),
        asked(x).replace(b"/infer", b"/infer?a=b"),
    ]


def plain(turn: int) -> list[bytes]:
    """What a client sends all day."""
    made = [asked(rows(1 + n % 7, seed=n), request_id="i" * (n % 4)) for n in range(9)]
    made += [asked(rows(1, seed=n), f"traceparent: 00-{turn + n + 1:032x}-{n + 1:016x}-01") for n in range(3)]
    made += [asked(rows(30), "Accept-Encoding: br", request_id="long"), two_asked(3), two_asked(2, [{"name": "sum"}])]
    return made


def test_answers_are_the_same_octets_with_and_without_the_lane(benches: Benches) -> None:
    requests = [each for turn in range(3) for each in (*plain(turn), *unlike())]

    mine, whole = ([said(bench, each) for each in requests] for bench in benches)

    assert [(requests[n], mine[n], whole[n]) for n in range(len(mine)) if mine[n] != whole[n]] == []
    assert all(each.startswith(b"HTTP/1.1 ") for each in mine)
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
        for request in plain(turn):
            assert OK in bench.said(request)
            cut = request.index(b"\r\n\r\n") + 6  # as libraries send: the head, then the body
            assert OK in bench.said(request[:cut], request[cut:])


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 2_000), max_size=6), picks=st.lists(st.integers(0, 14), min_size=1, max_size=6))
def test_pipelined_requests_are_answered_the_same_however_they_are_cut(
    pipelines: Benches, cuts: list[int], picks: list[int]
) -> None:
    data = b"".join(plain(n)[pick] for n, pick in enumerate(picks))
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
