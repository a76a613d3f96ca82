"""A server from start to stop: ports, taps, unknown errors, and a swap under load."""

from __future__ import annotations

import json
import re
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import TIMEOUT_S, call, exchange, http_infer, pool_of, serving, status_of

from holdfast.errors import UsageError
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.protocols import OK, TapEvent
from holdfast.serving.server import Address, Front, Server, ServerOptions

ONE = np.ones((1, 4), dtype=np.float32)
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()


class Notes:
    """A tap that keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[TapEvent] = []

    def on_response(self, event: TapEvent) -> None:
        self.events.append(event)


def test_port_in_use_is_named(front: Front) -> None:
    with serving(ModelPool(), front=front) as address:
        second = Server(ModelPool(), options=ServerOptions(address, front=front))

        with pytest.raises(UsageError, match=rf"port {address.port} on 127\.0\.0\.1 is in use"):
            second.start()


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_open_port_off_loopback_needs_a_word(front: Front, host: str) -> None:
    server = Server(ModelPool(), options=ServerOptions(Address(host, 0), front=front))

    with pytest.raises(UsageError, match="add --insecure"):
        server.start()


def test_insecure_allows_an_open_port(front: Front) -> None:
    server = Server(ModelPool(), options=ServerOptions(Address("0.0.0.0", 0), insecure=True, front=front))

    address = server.start()

    server.stop(1.0)
    assert address.port > 0


@pytest.mark.parametrize("text", ["8080", "host:", ":80", "host:65536", "host:-1", "host:８", ""])
def test_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected HOST:PORT"):
        Address.parse(text)


def test_address_round_trips() -> None:
    for text in ("127.0.0.1:80", "[::1]:0", "localhost:9"):
        assert str(Address.parse(text)) == text


def test_tap_is_told_of_every_outcome(front: Front) -> None:
    notes = Notes()

    with serving(pool_of({"m": models.scale(2.0)}), notes, front=front) as address:
        exchange(address, http_infer("m", JSON_ONE))
        exchange(address, http_infer("absent", JSON_ONE))
        exchange(address, http_infer("m", b"{"))
        call(address, oip.encode_request(TensorRequest("m", "1", "r7", {"x": ONE})))

    assert [(e.model, e.outcome) for e in notes.events] == [
        ("m", OK),
        ("", "HF-REQUEST-002"),
        ("m", "HF-REQUEST-001"),
        ("m", OK),
    ]
    last = notes.events[-1]
    assert last.inputs is not None
    assert last.outputs is not None
    assert (list(last.request_ids), last.version, min(last.latencies_s) > 0) == (["r7"], "1", True)
    assert last.outputs["y"].tolist() == [[2, 2, 2, 2]]


def test_failing_tap_does_not_fail_the_request(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def on_response(self, event: TapEvent) -> None:
            raise RuntimeError("tap bug")

    with serving(pool_of({"m": models.scale(2.0)}), Broken(), front=front) as address:
        assert status_of(exchange(address, http_infer("m", JSON_ONE))) == 200

    assert "tap failed" in caplog.text


def test_taps_hear_no_name_that_a_client_made_up(front: Front) -> None:
    """What they hear leaves the device in signed reports; a name without end would keep a report from being written."""
    notes = Notes()
    broken = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1]}]}

    with serving(pool_of({"m": models.scale(2.0)}), notes, front=front) as address:
        for name, version in (("patient-0815", "1"), ("x" * 100_000, ""), ("m", "2"), ("m", "x" * 100_000), ("m", "")):
            message = oip_pb2.ModelInferRequest(model_name=name, model_version=version, raw_input_contents=[b"1"])
            message.inputs.add(name="x", datatype="FP32", shape=[1, 4])
            with pytest.raises(grpc.RpcError):
                call(address, message.SerializeToString())
        for name in ("patient-0815", "m"):
            assert status_of(exchange(address, http_infer(name, json.dumps(broken).encode()))) == 400

    assert [(event.model, event.version) for event in notes.events] == [
        *[("", "")] * 4,
        ("m", "1"),
        ("", ""),
        ("m", "1"),
    ]


def test_unknown_error_shows_an_id_and_no_details(
    front: Front, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pool = pool_of({"m": models.scale(2.0)})
    monkeypatch.setattr(ModelSession, "run_checked", lambda *arguments: 1 / 0)

    with serving(pool, front=front) as address:
        answer = exchange(address, http_infer("m", JSON_ONE))
        with pytest.raises(grpc.RpcError) as refused:
            call(address, oip.encode_request(TensorRequest("m", "", "", {"x": ONE})))

    assert status_of(answer) == 500
    for text in (answer.decode(), refused.value.details()):
        assert re.search(r"internal error; the log holds it under id [0-9a-f]{16}", text)
        assert "division" not in text
    assert "ZeroDivisionError" in caplog.text


def test_swap_under_load_fails_no_request(front: Front) -> None:
    pool = pool_of({"m": models.scale(1.0)})
    sessions = [load_session(ModelSource(models.scale(float(factor)))) for factor in (1, 2)]
    done = threading.Event()
    answers: dict[str, int] = {"grpc": 0, "http": 0}
    wrong: list[object] = []

    def ask_grpc(address: Address) -> None:
        with grpc.insecure_channel(str(address)) as channel:
            infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            request = oip.encode_request(TensorRequest("m", "", "", {"x": ONE}))
            while not done.is_set():
                try:
                    answer = oip.decode_response(infer(request, timeout=TIMEOUT_S))
                    if answer.outputs["y"][0, 0] != int(answer.version):
                        wrong.append(answer)
                    answers["grpc"] += 1
                except grpc.RpcError as error:
                    wrong.append(error)

    def ask_http(address: Address) -> None:
        while not done.is_set():
            answer = exchange(address, http_infer("m", JSON_ONE))
            if status_of(answer) != 200:
                wrong.append(answer)
                continue
            top = json.loads(answer.split(b"\r\n\r\n", 1)[1])
            if top["outputs"][0]["data"][0] != int(top["model_version"]):
                wrong.append(top)
            answers["http"] += 1

    with serving(pool, front=front) as address:
        threads = [threading.Thread(target=ask, args=(address,)) for ask in (ask_grpc, ask_http, ask_grpc, ask_http)]
        for thread in threads:
            thread.start()
        turn = 0
        while (min(answers.values()) < 100 or turn < 200) and not wrong:
            turn += 1
            pool.swap("m", str(turn % 2 + 1), sessions[turn % 2])
            done.wait(0.001)
        done.set()
        for thread in threads:
            thread.join()

    assert wrong == []
    assert min(answers.values()) >= 100


def test_stop_lets_running_requests_end_and_says_not_ready(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of({"m": models.scale(2.0), "n": models.scale(2.0)})
    arrived, go_on = held(monkeypatch)
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0), front=front))
    address = server.start()
    grpc_request = oip.encode_request(TensorRequest("n", "", "", {"x": ONE}))

    with ThreadPoolExecutor() as threads:
        by_http = threads.submit(exchange, address, http_infer("m", JSON_ONE))
        by_grpc = threads.submit(call, address, grpc_request)
        for _ in range(2):
            assert arrived.acquire(timeout=TIMEOUT_S)
        stopping = threads.submit(server.stop, TIMEOUT_S)
        while _accepts(address):
            pass
        assert not stopping.done()
        go_on.set()

        assert status_of(by_http.result()) == 200
        assert oip.decode_response(by_grpc.result()).outputs["y"].tolist() == [[2, 2, 2, 2]]
        stopping.result()
    server.stop()  # a second time does nothing


def test_requests_beyond_the_bound_are_refused_at_the_door(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = pool_of({"m": models.scale(2.0)})
    arrived, go_on = held(monkeypatch)
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0), max_in_flight=1, front=front))
    address = server.start()

    with ThreadPoolExecutor() as threads:
        first = threads.submit(exchange, address, http_infer("m", JSON_ONE))
        assert arrived.acquire(timeout=TIMEOUT_S)
        second = exchange(address, http_infer("m", JSON_ONE))
        with pytest.raises(grpc.RpcError) as refused:
            call(address, oip.encode_request(TensorRequest("m", "", "", {"x": ONE})))
        go_on.set()

        assert status_of(second) == 429
        assert refused.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert status_of(first.result()) == 200
    server.stop()


def held(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Semaphore, threading.Event]:
    """Models take as long as the test wants: told when one runs, they go on when the event is set."""
    arrived, go_on = threading.Semaphore(0), threading.Event()
    run = ModelSession.run_checked

    def slow(*arguments: Any) -> Any:
        arrived.release()
        assert go_on.wait(TIMEOUT_S)
        return run(*arguments)

    monkeypatch.setattr(ModelSession, "run_checked", slow)
    return arrived, go_on


def _accepts(address: Address) -> bool:
    try:
        socket.create_connection((address.host, address.port), timeout=TIMEOUT_S).close()
    except OSError:
        return False
    return True
