"""gRPC's C core as a client that asks "are you there?" too often: it is told so, slows down, and loses no call."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tests.conformance.conftest import options_of
from tests.fakes import served_models as models
from tests.fakes.serving import TIMEOUT_S, pool_of

from holdfast.serving.server import Server

X = np.ones((1, 4), dtype=np.float32)
EAGER = [
    ("grpc.keepalive_time_ms", 100),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),
]


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server(pool_of({"m": models.scale(2.0)}), options=options_of(None))
    server.start()
    yield server
    server.stop(2.0)


def ask(client: tritonclient.grpc.InferenceServerClient) -> list[list[float]]:
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(X)
    answer: list[list[float]] = client.infer("m", [tensor]).as_numpy("y").tolist()
    return answer


def test_client_that_asks_and_pings_is_served(server: Server) -> None:
    """A call every 50 ms, a ping each 100 ms without data: answers between them make up for it."""
    with tritonclient.grpc.InferenceServerClient(str(server.addresses[0]), channel_args=EAGER) as client:
        for _ in range(100):
            assert ask(client) == [[2, 2, 2, 2]]
            threading.Event().wait(0.05)


def test_client_that_pings_while_it_is_idle_is_served_when_it_comes_back(server: Server) -> None:
    with tritonclient.grpc.InferenceServerClient(str(server.addresses[0]), channel_args=EAGER) as client:
        for _ in range(3):
            assert ask(client) == [[2, 2, 2, 2]]
            threading.Event().wait(1.5)


def test_long_call_whose_client_pings_too_often_is_told_why(server: Server) -> None:
    with grpc.insecure_channel(str(server.addresses[0]), EAGER) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)

        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "too_many_pings" in ended.value.details().lower().replace(" ", "_")
        again = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        assert again.status == health_pb2.HealthCheckResponse.SERVING


def test_client_with_settings_that_are_kind_is_not_disturbed(server: Server) -> None:
    """What Triton's examples pass: a ping after 10 s, two at most without data."""
    options = tritonclient.grpc.KeepAliveOptions(
        keepalive_time_ms=10_000, keepalive_timeout_ms=5_000, http2_max_pings_without_data=2
    )
    with tritonclient.grpc.InferenceServerClient(str(server.addresses[0]), keepalive_options=options) as client:
        assert ask(client) == [[2, 2, 2, 2]]
        threading.Event().wait(12.0)
        assert ask(client) == [[2, 2, 2, 2]]
