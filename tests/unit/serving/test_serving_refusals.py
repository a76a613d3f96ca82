"""What is refused before it is a request is counted by reason, logged without its content, and bounded in both."""

from __future__ import annotations

import logging
import re
import socket
import threading

import pytest
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.http2_client import GRPC, Http2Client
from tests.fakes.serving import TIMEOUT_S, exchange, pool_of, serving, status_of

from holdfast.serving.grpc_wire import GrpcFault
from holdfast.serving.http1 import HttpError
from holdfast.serving.http2.errors import ConnectionFault, ErrorCode, StreamFault
from holdfast.serving.refusals import CONNECTION, LOG_S, SILENT, Refusals
from holdfast.serving.server import Address, Front

SAMPLE = re.compile(r'^holdfast_peer_refusals_total\{layer="(\w+)",reason="(\w+)"\} (\d+)$', re.MULTILINE)
METRICS = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def refused(address: Address) -> dict[tuple[str, str], int]:
    """What the metrics page counts."""
    page = exchange(address, METRICS).decode()
    return {(layer, reason): int(number) for layer, reason, number in SAMPLE.findall(page)}


def test_faults_are_counted_under_their_layer_and_reason() -> None:
    refusals = Refusals(FakeClock())

    refusals.note(HttpError(431, "too large"))
    refusals.note(ConnectionFault(ErrorCode.COMPRESSION_ERROR, "bad index"))
    refusals.note(StreamFault(7, ErrorCode.PROTOCOL_ERROR, "bad head"))
    refusals.note(GrpcFault("UNIMPLEMENTED", "no such encoding"))
    refusals.count(CONNECTION, SILENT)
    refusals.count(CONNECTION, SILENT)

    assert refusals.counts() == {
        ("http", "431"): 1,
        ("http2", "COMPRESSION_ERROR"): 1,
        ("http2", "PROTOCOL_ERROR"): 1,
        ("grpc", "UNIMPLEMENTED"): 1,
        ("connection", "silent"): 2,
    }


def test_other_errors_are_left_to_others() -> None:
    refusals = Refusals(FakeClock())

    refusals.note(RuntimeError("a bug"))

    assert refusals.counts() == {}


def test_flood_is_logged_once_in_a_while_with_how_often(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    refusals = Refusals(clock)

    with caplog.at_level(logging.INFO):
        for _ in range(1_000):
            refusals.count("http", "400")
        clock.wait(threading.Event(), LOG_S)
        refusals.count("http", "400")

    assert [(record.reason, record.times) for record in caplog.records] == [("400", 1), ("400", 1_000)]  # type: ignore[attr-defined]


def test_threads_lose_no_count() -> None:
    refusals = Refusals(FakeClock())
    threads = [
        threading.Thread(target=lambda: [refusals.count("http2", "CANCEL") for _ in range(1_000)]) for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert refusals.counts() == {("http2", "CANCEL"): 4_000}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x16\x03\x01\x02\x00secret\r\n\r\n", "400"),
        (b"POST /v2/x HTTP/1.1\r\nContent-Length: secret\r\n\r\n", "400"),
        (b"GET / HTTP/1.1\r\n" + b"X: secret\r\n" * 10_000 + b"\r\n", "431"),
        (b"POST /v2/x HTTP/1.1\r\nTransfer-Encoding: secret\r\n\r\n", "501"),
        (b"POST /v2/x HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", "413"),
    ],
    ids=["no_http", "length", "head", "coding", "body"],
)
def test_broken_http_is_counted_by_status_and_logged_without_its_content(
    front: Front, data: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), serving(pool_of({"m": models.scale(2.0)}), front=front) as address:
        assert status_of(exchange(address, data)) == int(reason)

        assert refused(address) == {("http", reason): 1}
    assert "secret" not in caplog.text
    assert "secret" not in "".join(str(vars(record)) for record in caplog.records)


def test_connection_beyond_the_bound_is_counted(front: Front) -> None:
    with serving(pool_of({"m": models.scale(2.0)}), max_connections=1, front=front) as address:
        with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as held:
            held.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
            assert held.recv(1024).startswith(b"HTTP/1.1 200")
            assert exchange(address, METRICS) == b""
            held.sendall(METRICS)
            page = b"".join(iter(lambda: held.recv(65_536), b"")).decode()

    assert SAMPLE.findall(page) == [("connection", "too_many", "1")]


def test_broken_frames_are_counted_by_their_code() -> None:
    preface, settings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(3) + b"\x04" + bytes(5)
    with serving(pool_of({"m": models.scale(2.0)})) as address:
        exchange(address, preface + b"\x00\x00\x06\x00\x00\x00\x00\x00\x01secret")
        exchange(address, preface + settings + b"\x00\x00\x06\x06\x00\x00\x00\x00\x00secret")
        exchange(address, preface + settings + b"\x00\x00\x06\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff\xff\xff")

        assert refused(address) == {
            ("http2", "PROTOCOL_ERROR"): 1,
            ("http2", "FRAME_SIZE_ERROR"): 1,
            ("http2", "COMPRESSION_ERROR"): 1,
        }


def test_stream_of_another_length_than_it_said_is_counted() -> None:
    with serving(pool_of({"m": models.scale(2.0)})) as address, Http2Client(address) as client:
        stream_id = client.begin(headers=(*GRPC, ("content-length", "1")))
        client.send(stream_id, b"secret")
        while client.answers[stream_id].reset_code is None:
            client.receive()

        assert refused(address) == {("http2", "PROTOCOL_ERROR"): 1}


@pytest.mark.parametrize(
    ("flag", "headers", "reason"),
    [
        (2, GRPC, "INTERNAL"),
        (1, (*GRPC, ("grpc-encoding", "secret")), "UNIMPLEMENTED"),
        (0, (*GRPC, ("grpc-timeout", "secret")), "INTERNAL"),
    ],
    ids=["flag", "encoding", "timeout"],
)
def test_broken_grpc_is_counted_and_is_the_clients_error(
    flag: int, headers: tuple[tuple[str, str], ...], reason: str
) -> None:
    with serving(pool_of({"m": models.scale(2.0)})) as address, Http2Client(address) as client:
        client.ask(b"secret", flag, headers)

        page = exchange(address, METRICS).decode()
        assert SAMPLE.findall(page) == [("grpc", reason, "1")]
        assert "HF-INTERNAL" not in page
