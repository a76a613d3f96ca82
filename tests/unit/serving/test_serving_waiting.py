"""What waits in a server: bounded, by priority, until its time is over or its client leaves, on every front."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import INFER, TIMEOUT_S, call, exchange, http_infer, pool_of, status_of

from holdfast.errors import DeadlineError
from holdfast.inference.session import ModelSession, RunStop
from holdfast.inference.tensors import Array, TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.admission import SchedulerOptions
from holdfast.serving.protocols import OK, TapEvent
from holdfast.serving.server import Address, Front, Server, ServerOptions

HTTP, GRPC = "http", "grpc"
BOTH = pytest.mark.parametrize("over", [HTTP, GRPC])
STATUS = {200: "OK", 429: "RESOURCE_EXHAUSTED", 504: "DEADLINE_EXCEEDED"}
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
SHORT_US = 20_000  # of a request that is to be too late: what it waits for is held until the test lets go

Inputs = Mapping[str, Array]


@dataclass
class Held:
    """Runs that wait for the test: told of each, by the first number of its input."""

    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    go_on: threading.Event = field(default_factory=threading.Event)
    order: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)  # by their stop

    def run(
        self, real: Callable[..., dict[str, Array]], session: ModelSession, inputs: Inputs, outputs: tuple[str, ...],
        stop: RunStop | None,
    ) -> dict[str, Array]:  # fmt: skip
        number = float(inputs["x"].flat[0])
        self.order.append(number)
        self.arrived.release()
        for _ in range(int(TIMEOUT_S / 0.01)):
            if self.go_on.wait(0.01):
                return real(session, inputs, outputs, stop)
            if stop is not None and stop.is_set:
                self.ended.append(number)
                raise DeadlineError("the run was ended")
        raise AssertionError("nobody let the run go on")


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    held, real = Held(), ModelSession.run_checked

    def run(
        session: ModelSession, inputs: Inputs, outputs: tuple[str, ...] = (), stop: RunStop | None = None
    ) -> dict[str, Array]:
        return held.run(real, session, inputs, outputs, stop)

    monkeypatch.setattr(ModelSession, "run_checked", run)
    yield held
    held.go_on.set()


class Notes:
    """A tap that keeps outcomes."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def on_response(self, event: TapEvent) -> None:
        self.outcomes.append(event.outcome)


@contextmanager
def serving(front: Front, *taps: Notes, **bounds: int) -> Iterator[Address]:
    """A server of one model that nobody has timed: each run is on the model's own thread."""
    options = ServerOptions(Address("127.0.0.1", 0), front=front, scheduler=SchedulerOptions(**bounds))
    server = Server(pool_of({"m": models.scale(2.0)}), taps, options)
    address = server.start()
    try:
        yield address
    finally:
        server.stop(2.0)


def message(number: float, parameters: Mapping[str, int]) -> bytes:
    tensor = np.full((1, 4), number, dtype=np.float32)
    request = oip_pb2.ModelInferRequest.FromString(oip.encode_request(TensorRequest("m", "", "", {"x": tensor})))
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request.SerializeToString()


def ask(address: Address, over: str, number: float, **parameters: int) -> str:
    """The gRPC name of the answer's status."""
    if over == GRPC:
        try:
            call(address, message(number, parameters))
        except grpc.RpcError as error:
            return str(error.code().name)
        return "OK"
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [number] * 4}
    body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
    return STATUS[status_of(exchange(address, http_infer("m", body)))]


def queued(address: Address) -> int:
    found = re.search(rb'^holdfast_queue_requests\{model="m"\} (\d+)$', exchange(address, METRICS), re.MULTILINE)
    assert found
    return int(found[1])


def until(condition: Callable[[], bool]) -> None:
    for _ in range(int(TIMEOUT_S / 0.01)):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it did not happen")


@BOTH
def test_queue_is_bounded_and_more_is_refused_while_the_accepted_are_answered(
    front: Front, held: Held, over: str
) -> None:
    notes = Notes()
    with serving(front, notes, max_queued=1) as address, ThreadPoolExecutor() as threads:
        running = threads.submit(ask, address, over, 1.0)
        assert held.arrived.acquire(timeout=TIMEOUT_S)
        waiting = threads.submit(ask, address, over, 2.0)
        until(lambda: queued(address) == 1)

        assert ask(address, over, 3.0) == "RESOURCE_EXHAUSTED"

        held.go_on.set()
        assert (running.result(), waiting.result()) == ("OK", "OK")
    assert sorted(notes.outcomes) == ["HF-REQUEST-004", OK, OK]
    assert held.order == [1.0, 2.0]


@BOTH
def test_queued_request_is_answered_when_its_timeout_is_over(front: Front, held: Held, over: str) -> None:
    notes = Notes()
    with serving(front, notes) as address, ThreadPoolExecutor() as threads:
        running = threads.submit(ask, address, over, 1.0)
        assert held.arrived.acquire(timeout=TIMEOUT_S)

        assert ask(address, over, 2.0, timeout=SHORT_US) == "DEADLINE_EXCEEDED"

        assert notes.outcomes == ["HF-REQUEST-005"]
        held.go_on.set()
        assert running.result() == "OK"
    assert held.order == [1.0], "it was run although nobody waited"


@BOTH
def test_running_request_is_ended_when_its_timeout_is_over(front: Front, held: Held, over: str) -> None:
    with serving(front) as address:
        assert ask(address, over, 1.0, timeout=SHORT_US) == "DEADLINE_EXCEEDED"

        until(lambda: held.ended == held.order)  # a machine that is busy may not even have started it


def test_run_is_ended_at_the_deadline_of_its_grpc_call(front: Front, held: Held) -> None:
    notes = Notes()
    with serving(front, notes) as address, grpc.insecure_channel(str(address)) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary(INFER)(message(1.0, {}), timeout=0.2)

        assert refused.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        until(lambda: held.ended == held.order)
        until(lambda: len(notes.outcomes) == 1)
    assert notes.outcomes[0] in ("HF-REQUEST-005", "HF-REQUEST-013")  # whose clock rings first: ours or the client's


@BOTH
def test_small_priorities_go_first(front: Front, held: Held, over: str) -> None:
    with serving(front) as address, ThreadPoolExecutor() as threads:
        answers: list[Future[str]] = [threads.submit(ask, address, over, 1.0)]
        assert held.arrived.acquire(timeout=TIMEOUT_S)
        for place, (number, priority) in enumerate(((4.0, 3), (3.0, 0), (2.0, 1)), 1):
            answers.append(threads.submit(ask, address, over, number, priority=priority))
            until(lambda place=place: queued(address) == place)  # type: ignore[misc]

        held.go_on.set()

        assert [answer.result() for answer in answers] == ["OK"] * 4
    assert held.order == [1.0, 2.0, 3.0, 4.0]


@BOTH
@pytest.mark.parametrize("parameters", [{"priority": -1}, {"timeout": -1}, {"timeout": 3_600_000_001}])
def test_priority_or_timeout_out_of_range_is_refused(front: Front, over: str, parameters: dict[str, int]) -> None:
    with serving(front) as address:
        if over == GRPC:
            with pytest.raises(grpc.RpcError) as refused:
                call(address, message(1.0, parameters))
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            text = str(refused.value.details())
        else:
            tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0] * 4}
            body = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
            answer = exchange(address, http_infer("m", body))
            assert status_of(answer) == 400
            text = answer.decode()

        assert f"as {next(iter(parameters))}, got {next(iter(parameters.values()))}" in text


def test_queued_request_of_a_client_that_cancels_is_not_run(front: Front, held: Held) -> None:
    notes = Notes()
    with serving(front, notes) as address, grpc.insecure_channel(str(address)) as channel:
        infer = channel.unary_unary(INFER)
        running = infer.future(message(1.0, {}))
        assert held.arrived.acquire(timeout=TIMEOUT_S)
        waiting = infer.future(message(2.0, {}))
        until(lambda: queued(address) == 1)

        waiting.cancel()

        until(lambda: queued(address) == 0)
        until(lambda: notes.outcomes == ["HF-REQUEST-013"])
        held.go_on.set()
        running.result(TIMEOUT_S)
    assert held.order == [1.0]


def test_run_of_a_client_that_cancels_is_ended(front: Front, held: Held) -> None:
    with serving(front) as address, grpc.insecure_channel(str(address)) as channel:
        running = channel.unary_unary(INFER).future(message(1.0, {}))
        assert held.arrived.acquire(timeout=TIMEOUT_S)

        running.cancel()

        until(lambda: held.ended == [1.0])


def test_run_of_a_stream_whose_client_leaves_is_ended(front: Front, held: Held) -> None:
    with serving(front) as address, grpc.insecure_channel(str(address)) as channel:
        stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
        answers = stream(iter([message(1.0, {})]))
        assert held.arrived.acquire(timeout=TIMEOUT_S)

        answers.cancel()

        until(lambda: held.ended == [1.0])


def test_streams_wait_in_the_same_queue(front: Front, held: Held) -> None:
    with serving(front, max_queued=1) as address, ThreadPoolExecutor() as threads:
        running = threads.submit(ask, address, HTTP, 1.0)
        assert held.arrived.acquire(timeout=TIMEOUT_S)
        waiting = threads.submit(ask, address, HTTP, 2.0)
        until(lambda: queued(address) == 1)

        with grpc.insecure_channel(str(address)) as channel:
            stream = channel.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")
            (answer,) = stream(iter([message(3.0, {})]), timeout=TIMEOUT_S)
        held.go_on.set()

        told = oip_pb2.ModelStreamInferResponse.FromString(answer).error_message
        assert told.startswith("1 requests wait for this model already")
        assert (running.result(), waiting.result()) == ("OK", "OK")


def test_statistics_tell_how_long_requests_waited(front: Front, held: Held) -> None:
    with serving(front) as address, ThreadPoolExecutor() as threads:
        running = threads.submit(ask, address, GRPC, 1.0)
        assert held.arrived.acquire(timeout=TIMEOUT_S)
        waiting = threads.submit(ask, address, GRPC, 2.0)
        until(lambda: queued(address) == 1)
        held.go_on.set()
        assert (running.result(), waiting.result()) == ("OK", "OK")

        answer = call(address, b"", "/inference.GRPCInferenceService/ModelStatistics")

    (found,) = oip_pb2.ModelStatisticsResponse.FromString(answer).model_stats
    stats = found.inference_stats
    assert (stats.success.count, stats.queue.count, found.execution_count) == (2, 2, 2)
    assert 0 < stats.queue.ns < stats.success.ns
    assert stats.queue.ns + stats.compute_infer.ns <= stats.success.ns
