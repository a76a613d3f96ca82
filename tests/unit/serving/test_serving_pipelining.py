"""HTTP/1.1 requests one behind another: each is answered, and no more than the client reads is made or kept."""

from __future__ import annotations

import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import TIMEOUT_S, connect, http_infer, pool_of, serving

from holdfast.serving.server import Address, Front

DOCUMENT = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 100  # 40 octets each, for 16 KB each
LAST = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK"
READ_BYTES = 4_096  # of the client's socket: little waits outside of the server


@pytest.fixture(scope="module")
def address(front: Front) -> Iterator[Address]:
    with serving(pool_of({"m": models.scale(2.0)}), front=front) as at:
        yield at


def said(connection: socket.socket, data: bytes) -> bytes:
    """All that comes back, while the data is sent from another thread."""
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    answer = b"".join(iter(lambda: connection.recv(1_048_576), b""))
    sender.join()
    return answer


def send_without_end(connection: socket.socket, data: bytes) -> None:
    while True:
        connection.sendall(data)


def test_questions_are_not_answered_beyond_what_is_read(address: Address) -> None:
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READ_BYTES)
        deaf.settimeout(0.5)
        deaf.connect((address.host, address.port))
        with pytest.raises(TimeoutError):  # the server has stopped reading
            send_without_end(deaf, DOCUMENT)
        with connect(address) as other:
            assert OK in said(other, LAST)
        held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert held < 8 * 1024**2


def test_each_question_is_answered_once_somebody_reads(address: Address) -> None:
    with connect(address) as connection:
        assert said(connection, DOCUMENT + LAST).count(OK) == 101


def test_large_request_behind_another_one_is_read_to_its_end(address: Address) -> None:
    x = np.ones((100_000, 4), dtype=np.float32)
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    head = json.dumps({"inputs": [tensor]}).encode()
    request = http_infer("m", head + x.tobytes(), f"Inference-Header-Content-Length: {len(head)}")

    with connect(address) as connection:
        connection.settimeout(TIMEOUT_S)
        assert said(connection, request.replace(b"Connection: close\r\n", b"") * 3 + LAST).count(OK) == 4
