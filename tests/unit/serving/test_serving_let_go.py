"""What a request brought goes with its answer, and what a connection held goes with it: nobody waits for a collector.

A circle with a large body in it stays until a full collection, which may be hours away: two clients with 64 MiB each
made a server grow to 1.5 GB.
"""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.http2_client import Http2Client
from tests.fakes.serving import TIMEOUT_S, connect, pool_of

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.buffers import MAX_KEPT_BYTES
from holdfast.serving.server import Address, Server, ServerOptions

MIB = 1_048_576
BODY_BYTES = 8 * MIB
ROUNDS = 6
MOST_BYTES = MAX_KEPT_BYTES + BODY_BYTES // 2  # the memory of some bodies is kept for the next ones
HEADER_LENGTH = b"Inference-Header-Content-Length: "


def http(body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST /v2/models/i/infer HTTP/1.1", b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", b""]) + body


def binary(elements: int) -> bytes:
    """A request of raw numbers; of a wrong size it is refused."""
    tensor = {"name": "x", "datatype": "FP32", "shape": [elements // 4, 4]}
    header = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": BODY_BYTES}}]}).encode()
    return http(header + bytes(BODY_BYTES), HEADER_LENGTH + str(len(header)).encode())


def chunked() -> bytes:
    head = b"POST /v2/models/i/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n" + HEADER_LENGTH + b"0\r\n\r\n"
    return head + b"%x\r\n" % (BODY_BYTES + 1) + bytes(BODY_BYTES + 1) + b"\r\n0\r\n\r\n"


HTTP_REQUESTS: dict[str, bytes] = {
    "refused": binary(4),
    "packed": http(zlib.compress(bytes(BODY_BYTES + 1)), b"Content-Encoding: deflate", HEADER_LENGTH + b"0"),
    "chunked": chunked(),
    "unknown_model": binary(4).replace(b"/i/", b"/q/", 1),
}


@pytest.fixture(scope="module")
def address() -> Iterator[Address]:
    server = Server(pool_of({"i": models.identity()}), options=ServerOptions(Address("127.0.0.1", 0)))
    yield server.start()
    server.stop(2.0)


@pytest.fixture
def held(address: Address) -> Iterator[Callable[[], None]]:
    """What is checked at the end of a test: that nothing of its bodies is left, though no collector ran."""
    gc.collect()
    gc.disable()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]

    def is_let_go() -> None:
        deadline_s = time.monotonic() + TIMEOUT_S
        while (left := tracemalloc.get_traced_memory()[0] - before) > MOST_BYTES and time.monotonic() < deadline_s:
            pass  # the server has not seen the end of its connection yet
        assert left <= MOST_BYTES

    yield is_let_go
    tracemalloc.stop()
    gc.enable()


@pytest.mark.parametrize("request_bytes", HTTP_REQUESTS.values(), ids=HTTP_REQUESTS)
def test_body_goes_with_its_answer_while_the_connection_stays(
    address: Address, held: Callable[[], None], request_bytes: bytes
) -> None:
    with ExitStack() as stack:
        for _ in range(ROUNDS):
            connection = stack.enter_context(connect(address))
            connection.sendall(request_bytes)
            assert connection.recv(65_536).startswith(b"HTTP/1.1 4")

        held()


@pytest.mark.parametrize("request_bytes", HTTP_REQUESTS.values(), ids=HTTP_REQUESTS)
def test_half_a_body_goes_with_its_connection(address: Address, held: Callable[[], None], request_bytes: bytes) -> None:
    for _ in range(ROUNDS):
        with connect(address) as connection:
            connection.sendall(request_bytes[:-1])

    held()


def test_answers_that_nobody_took_go_with_their_connection(address: Address, held: Callable[[], None]) -> None:
    message = oip.encode_request(TensorRequest("i", "", "", {"x": np.zeros((BODY_BYTES // 64, 4), dtype=np.float32)}))
    for _ in range(ROUNDS):
        with Http2Client(address) as client:
            streams = [client.begin() for _ in range(4)]
            for stream in streams:
                client.send(stream, b"\0" + len(message).to_bytes(4, "big") + message)
            while not client.answers[streams[-1]].headers:
                client.receive()

    held()
