"""The native front where it goes beyond the other: floods, large messages, draining."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.http2_client import GRPC, Http2Client
from tests.fakes.serving import TIMEOUT_S, call, exchange, http_infer, pool_of, serving, status_of

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.http2 import frames
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.native.budget import Budget
from holdfast.serving.server import Address, Server, ServerOptions

ONE = np.ones((1, 4), dtype=np.float32)
REQUEST = oip.encode_request(TensorRequest("m", "", "id", {"x": ONE}))
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()
GOAWAY = frames.goaway(2**31 - 1, ErrorCode.NO_ERROR)
MAX_BYTES = 8 * 1024**2
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    with serving(pool_of({"m": models.scale(2.0), "i": models.identity()}), max_message_bytes=MAX_BYTES) as at:
        yield at


def doubled(message: bytes) -> list[list[float]]:
    got: list[list[float]] = oip.decode_response(message).outputs["y"].tolist()
    return got


def assert_serves(address: Address) -> None:
    assert doubled(call(address, REQUEST)) == [[2, 2, 2, 2]]
    assert status_of(exchange(address, http_infer("m", JSON_ONE))) == 200


def test_trace_context_comes_back_and_a_malformed_one_does_not(address: Address) -> None:
    with Http2Client(address) as client:
        good = client.ask(REQUEST, headers=(*GRPC, ("traceparent", TRACE)))
        bad = client.ask(REQUEST, headers=(*GRPC, ("traceparent", TRACE + "x")))

    assert good.trailers["traceparent"] == TRACE
    assert "traceparent" not in bad.trailers
    assert good.grpc_status == bad.grpc_status == (0, "")


def test_gzip_message_is_expanded(address: Address) -> None:
    with Http2Client(address) as client:
        answer = client.ask(gzip.compress(REQUEST), 1, (*GRPC, ("grpc-encoding", "gzip")))

    assert doubled(answer.body[5:]) == [[2, 2, 2, 2]]


@pytest.mark.parametrize(
    ("message", "flag", "more", "status", "text"),
    [
        (REQUEST, 1, (("grpc-encoding", "zstd"),), 12, "not offered"),
        (REQUEST, 0, (("grpc-timeout", "soon"),), 13, "malformed grpc-timeout"),
        (REQUEST, 0, (("grpc-timeout", "0n"),), 4, "deadline"),
        (bytes(MAX_BYTES + 1), 0, (), 8, "larger than max"),
        (gzip.compress(bytes(MAX_BYTES + 1)), 1, (("grpc-encoding", "gzip"),), 8, "larger than max"),
        (b"\xff", 0, (), 3, "not a inference.ModelInferRequest"),
    ],
    ids=["encoding_unknown", "timeout_malformed", "timeout_over", "oversized", "gzip_bomb", "garbage"],
)
def test_defect_of_a_call_ends_that_call_only(
    address: Address, message: bytes, flag: int, more: tuple, status: int, text: str
) -> None:
    with Http2Client(address) as client:
        stream_id = client.begin(headers=(*GRPC, *more))
        client.send(stream_id, bytes((flag,)) + len(message).to_bytes(4, "big") + message[:100_000])
        answer = client.wait(stream_id)

        assert answer.grpc_status[0] == status
        assert text in answer.grpc_status[1]
        assert doubled(client.ask(REQUEST).body[5:]) == [[2, 2, 2, 2]]


def test_unknown_call_and_wrong_method_are_unimplemented(address: Address) -> None:
    with Http2Client(address) as client:
        assert client.ask(b"", path="/no.Such/Call").grpc_status == (12, "Method not found!")
        assert client.wait(client.begin(method="PUT", end=True)).grpc_status[0] == 12


def test_rest_works_over_http2_too(address: Address) -> None:
    with Http2Client(address) as client:
        ready = client.wait(client.begin("/v2/health/ready", "GET", (), end=True))
        stream_id = client.begin("/v2/models/m/infer", "POST", (("content-type", "application/json"),))
        client.send(stream_id, JSON_ONE)
        infer = client.wait(stream_id)
        absent = client.wait(client.begin("/nowhere?x=1", "GET", (), end=True))

    assert ready.headers[":status"] == "200"
    assert json.loads(infer.body)["outputs"][0]["data"] == [2, 2, 2, 2]
    assert absent.headers[":status"] == "404"


def test_large_tensors_take_turns_for_the_budget(address: Address) -> None:
    x = np.random.default_rng(1).standard_normal((400_000, 4)).astype(np.float32)  # 6.4 MB
    message = oip.encode_request(TensorRequest("i", "", "", {"x": x}))
    with grpc.insecure_channel(str(address), [("grpc.max_receive_message_length", -1)]) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        with ThreadPoolExecutor(6) as threads:
            answers = list(threads.map(lambda _: infer(message, timeout=TIMEOUT_S), range(6)))

    for answer in answers:
        assert oip.decode_response(answer).outputs["y"].tobytes() == x.tobytes()


def test_cancelled_and_abandoned_uploads_give_the_budget_back(address: Address) -> None:
    prefix = b"\0" + MAX_BYTES.to_bytes(4, "big")
    for _ in range(60):  # 60 x 8 MiB is more than the whole budget
        with Http2Client(address) as client:
            client.send(client.begin(), prefix, end=False)
            stream_id = client.begin()
            client.send(stream_id, prefix, end=False)
            client.h2.reset_stream(stream_id)
            client.flush()

    test_large_tensors_take_turns_for_the_budget(address)


def test_flood_ends_its_own_connection_only(address: Address) -> None:
    with Http2Client(address) as good, Http2Client(address) as bad:
        for _ in range(3_000):
            bad.h2.ping(b"12345678")
        bad.flush()
        bad.wait_closed()

        assert bad.went_away == 0xB
        assert doubled(good.ask(REQUEST).body[5:]) == [[2, 2, 2, 2]]


def test_rapid_reset_ends_its_own_connection_only(address: Address) -> None:
    with Http2Client(address) as bad:
        try:
            for _ in range(500):
                stream_id = bad.begin()
                bad.h2.reset_stream(stream_id)
                bad.flush()
        except OSError:
            pass  # closed while we still sent
        bad.wait_closed()

    assert_serves(address)


@settings(max_examples=60, deadline=None)
@given(tail=st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40))))
def test_any_frames_leave_the_server_serving(address: Address, tail: list) -> None:
    data = b"".join(frames.frame(*parts) for parts in tail)

    exchange(address, frames.PREFACE + frames.frame(4, 0, 0) + data)

    assert status_of(exchange(address, b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n")) == 200


def test_stop_sends_goaway_and_answers_what_is_under_way() -> None:
    server = Server(pool_of({"m": models.scale(2.0)}), options=ServerOptions(Address("127.0.0.1", 0), front="native"))
    address = server.start()
    with Http2Client(address) as client:
        client.ask(REQUEST)
        stream_id = client.begin()
        body = b"\0" + len(REQUEST).to_bytes(4, "big") + REQUEST
        client.send(stream_id, body[:10], end=False)
        stopping = threading.Thread(target=server.stop, args=(TIMEOUT_S,))
        stopping.start()
        data = client.socket.recv(65_536)
        while GOAWAY not in data:
            data += client.socket.recv(65_536)

        # not by `h2`, which takes the first GOAWAY for the end
        client.socket.sendall(frames.ping(b"draining", ack=True) + frames.frame(0, 1, stream_id, body[10:]))
        while part := client.socket.recv(65_536):
            data += part
        stopping.join()

    assert b"grpc-status\x010" in data


def test_budget_serves_in_order_and_once() -> None:
    told: list[str] = []
    budget = Budget(10)

    def wants(name: str) -> Callable[[], None]:
        return lambda: told.append(name)

    one = budget.reserve(6, wants("one"))
    two = budget.reserve(100, wants("two"))  # cut to the whole: it waits for everything
    three = budget.reserve(1, wants("three"))
    assert told == ["one"]
    three.release()
    one.release()
    one.release()
    assert told == ["one", "two"]
    two.release()

    assert budget.left == 10
