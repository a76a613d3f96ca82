"""A client that leaves before its answer does not keep a model busy: its run is ended, and counted by that reason."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from h2.settings import SettingCodes
from tests.fakes import served_models as models
from tests.fakes.http2_client import Http2Client
from tests.fakes.serving import TIMEOUT_S, exchange, pool_of, serving

from holdfast.errors import AbandonedError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.server import Address

ENDLESS = oip.encode_request(TensorRequest("slow", "", "", {"x": np.ones(1, dtype=np.float32)}))
FRAMED = b"\0" + len(ENDLESS).to_bytes(4, "big") + ENDLESS
JSON_ENDLESS = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()


@pytest.fixture
def address() -> Iterator[Address]:
    with serving(pool_of({"slow": models.hangs_at_first_run()})) as at:
        yield at


def cancel_the_stream(address: Address) -> None:
    with Http2Client(address) as client:
        stream_id = client.begin()
        client.send(stream_id, FRAMED)
        client.wait(client.begin("/v2/health/live", "GET", (), end=True))  # so the run was begun
        client.h2.reset_stream(stream_id, 8)
        client.flush()
        client.wait(client.begin("/v2/health/live", "GET", (), end=True))


def close_the_connection(address: Address) -> None:
    with Http2Client(address) as client:
        client.send(client.begin(), FRAMED)
        client.wait(client.begin("/v2/health/live", "GET", (), end=True))


def break_an_http_1_connection(address: Address) -> None:
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(JSON_ENDLESS)
    with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(head + JSON_ENDLESS)
        exchange(address, b"GET /v2/health/live HTTP/1.1\r\nConnection: close\r\n\r\n")
        # closed in both directions at once: one that closes its own may still wait for the answer
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def abandoned(address: Address) -> int:
    """Requests that the server counts as left by their client."""
    told = exchange(address, b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n").decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in told.splitlines() if AbandonedError.code in line)


@pytest.mark.parametrize("path", ["/grpc.health.v1.Health/Watch", "/inference.GRPCInferenceService/ModelStreamInfer"])
def test_long_calls_of_a_client_that_died_make_room(address: Address, path: str) -> None:
    """A killed process ends its connections without a word of HTTP/2; 64 long calls are all that a server holds."""
    for _ in range(100):
        with Http2Client(address) as client:
            stream_id = client.begin(path)
            client.send(stream_id, bytes(5), end="Watch" in path)
            while not client.answers[stream_id].body and not client.is_closed:
                client.receive()
            assert client.answers[stream_id].body


@pytest.mark.parametrize("leave", [cancel_the_stream, close_the_connection, break_an_http_1_connection])
def test_run_of_a_client_that_left_is_ended(address: Address, leave: Callable[[Address], None]) -> None:
    leave(address)

    deadline = time.monotonic() + TIMEOUT_S
    while not abandoned(address) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert abandoned(address) == 1


def test_client_that_says_no_more_and_left_no_window_is_let_go_at_once(address: Address) -> None:
    """Nobody can open the window any more: its answer is not kept until a timeout."""
    with Http2Client(address) as client:
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.flush()
        client.receive()
        stream_id = client.begin("/v2", "GET", (), end=True)
        while not client.answers[stream_id].headers:
            client.receive()

        client.socket.shutdown(socket.SHUT_WR)
        client.wait_closed()

    assert not client.answers[stream_id].body
