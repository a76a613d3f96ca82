"""Whatever arrives at the port ends in a clear answer or a closed connection, and harms nobody else."""

from __future__ import annotations

import json
import socket
import struct
import zlib
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.serving import TIMEOUT_S, call, exchange, http_infer, pool_of, serving, status_of

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.server import Address, Front

ONE = np.ones((1, 4), dtype=np.float32)
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()
MAX_BYTES = 1024**2
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@pytest.fixture(scope="module")
def address(front: Front) -> Iterator[Address]:
    with serving(
        pool_of({"m": models.scale(2.0), "g": models.gather()}), max_message_bytes=MAX_BYTES, front=front
    ) as at:
        yield at


def assert_serves(address: Address) -> None:
    """Both fronts answer a good request."""
    answer = exchange(address, http_infer("m", JSON_ONE))
    assert status_of(answer) == 200, answer
    assert oip.decode_response(call(address, oip.encode_request(TensorRequest("m", "", "", {"x": ONE})))).outputs[
        "y"
    ].tolist() == [[2, 2, 2, 2]]


HTTP_DEFECTS: dict[str, tuple[bytes, int, str]] = {
    "not_http": (b"hello there, this is no protocol\r\n\r\n", 400, "not an HTTP/1.1 request"),
    "tls_client_hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32) + b"\n", 400, "not an HTTP/1.1"),
    "http_0_9": (b"GET /\r\n\r\n", 400, "not an HTTP/1.1 request"),
    "preface_cut_short": (PREFACE[:16] + b"\r\n\r\n", 400, "not an HTTP/1.1 request"),
    "header_without_colon": (b"GET /v2 HTTP/1.1\r\nbroken\r\n\r\n", 400, "malformed header line"),
    "space_before_colon": (b"GET /v2 HTTP/1.1\r\nHost : x\r\n\r\n", 400, "malformed header line"),
    "head_too_large": (b"GET /v2 HTTP/1.1\r\nA: " + b"x" * 40_000 + b"\r\n\r\n", 431, "too large"),
    "line_without_end": (b"G" * 40_000, 431, "too large"),
    "too_many_headers": (b"GET /v2 HTTP/1.1\r\n" + b"".join(b"A%d: 1\r\n" % i for i in range(200)), 431, "more than"),
    "length_negative": (b"POST /v2 HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400, "malformed Content-Length"),
    "length_not_ascii": (b"POST /v2 HTTP/1.1\r\nContent-Length: \xb2\r\n\r\n", 400, "malformed Content-Length"),
    "length_huge": (b"POST /v2 HTTP/1.1\r\nContent-Length: 99999999999999\r\n\r\n", 413, "at most 1048576"),
    "length_twice": (b"POST /v2 HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, "given twice"),
    "length_beside_chunked": (
        b"POST /v2 HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "beside Transfer-Encoding",
    ),
    "chunk_size_not_hex": (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400, "chunk size"),
    "chunk_longer_than_said": (
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n",
        400,
        "longer than its size",
    ),
    "chunks_too_large": (
        b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n",
        413,
        "at most 1048576",
    ),
    "coding_unknown": (b"POST /v2 HTTP/1.1\r\nTransfer-Encoding: br\r\n\r\n", 501, "not offered"),
    "gzip_that_is_none": (
        b"POST /v2 HTTP/1.1\r\nContent-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc",
        400,
        "not gzip",
    ),
    "route_unknown": (b"GET /nowhere HTTP/1.1\r\nConnection: close\r\n\r\n", 404, "no such route"),
    "method_wrong": (b"GET /v2/models/m/infer HTTP/1.1\r\nConnection: close\r\n\r\n", 405, "expected POST"),
    "header_length_not_a_number": (
        http_infer("m", JSON_ONE, "Inference-Header-Content-Length: -3"),
        400,
        "expected a whole number",
    ),
    "body_not_json": (http_infer("m", b"{"), 400, "not JSON"),
    "unknown_model": (http_infer("absent", JSON_ONE), 404, "Request for unknown model: 'absent' is not found"),
    "unknown_version": (
        b"GET /v2/models/m/versions/9 HTTP/1.1\r\nConnection: close\r\n\r\n",
        404,
        "Request for unknown model: 'm' version 9 is not found",
    ),
    "chunks_in_http_1_0": (
        b"POST /v2/models/m/infer HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        400,
        "Transfer-Encoding in HTTP/1.0",
    ),
    "version_no_number": (
        b"GET /v2/models/m/versions/two/ready HTTP/1.1\r\nConnection: close\r\n\r\n",
        400,
        "failed to get model version from specified version string 'two' (details: stol), version should be",
    ),
    "model_fails_on_it": (
        http_infer("g", b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1],"data":[9]}]}'),
        500,
        "the model failed on these inputs",
    ),
}


@pytest.mark.parametrize("defect", sorted(HTTP_DEFECTS))
def test_http_defect_is_answered_by_name(address: Address, defect: str) -> None:
    data, status, text = HTTP_DEFECTS[defect]

    answer = exchange(address, data)

    assert status_of(answer) == status, answer
    assert text in json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]
    assert_serves(address)


def test_gzip_bomb_is_refused(address: Address) -> None:
    bomb = zlib.compress(bytes(64 * 1024**2), 9)
    assert len(bomb) < MAX_BYTES

    answer = exchange(address, http_infer("m", bomb, "Content-Encoding: deflate"))

    assert status_of(answer) == 413


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"\xff" * 50, "INVALID_ARGUMENT", "not a inference.ModelInferRequest message"),
        (b"", "NOT_FOUND", "Request for unknown model: '' is not found"),
        (oip.encode_request(TensorRequest("m", "2", "", {"x": ONE})), "NOT_FOUND", "'m' version 2 is not found"),
        (
            oip.encode_request(TensorRequest("m", "-1", "", {"x": ONE})),
            "INVALID_ARGUMENT",
            "invalid model version specified '-1' , version should be an integral value > 0",
        ),
        (bytes(MAX_BYTES + 1), "RESOURCE_EXHAUSTED", "larger than max"),
        (oip.encode_request(TensorRequest("m", "", "", {"x": ONE}))[:-1], "INVALID_ARGUMENT", "not a inference"),
        (
            oip.encode_request(TensorRequest("g", "", "", {"x": np.array([9])})),
            "INTERNAL",
            "the model failed on these inputs",
        ),
    ],
    ids=["garbage", "empty", "unknown_version", "negative_version", "oversized", "truncated", "model_fails_on_it"],
)
def test_grpc_defect_is_answered_by_name(address: Address, data: bytes, code: str, text: str) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        call(address, data)

    assert refused.value.code() == grpc.StatusCode[code]
    assert text in refused.value.details()
    assert_serves(address)


def test_other_grpc_services_are_unimplemented(address: Address) -> None:
    for method in ("/inference.Other/ModelInfer", "/inference.GRPCInferenceService/Nonsense"):
        with pytest.raises(grpc.RpcError) as refused:
            call(address, b"", method)
        assert refused.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("garbage", [b"\xff" * 4096, b"\0" * 9 + b"x" * 100, struct.pack(">I", 2**31) * 500])
def test_garbage_after_the_http2_preface_closes_that_connection_only(address: Address, garbage: bytes) -> None:
    exchange(address, PREFACE + garbage)

    assert_serves(address)


@settings(max_examples=40, deadline=None)
@given(
    st.binary(min_size=1, max_size=300) | st.binary(max_size=100).map(lambda tail: b"POST /v2/models/m/infer " + tail)
)
def test_any_first_bytes_leave_the_server_serving(address: Address, data: bytes) -> None:
    answer = exchange(address, data)

    assert status_of(answer) != 200 or data.startswith((b"GET", b"HEAD"))
    assert status_of(exchange(address, b"GET /v2/health/ready HTTP/1.1\r\nConnection: close\r\n\r\n")) == 200


def test_silent_and_half_sent_connections_do_not_stop_others(address: Address) -> None:
    held = []
    for first in (
        b"",
        b"P",
        PREFACE[:20],
        PREFACE,
        b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 100\r\n\r\nx",
    ):
        connection = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
        connection.sendall(first)
        held.append(connection)

    assert_serves(address)

    for connection in held:
        connection.close()


def test_connection_is_kept_alive_and_pipelined(address: Address) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n"

    answer = exchange(address, one * 3)

    assert answer.count(b"HTTP/1.1 200 OK") == 3


def test_chunked_body_is_read(address: Address) -> None:
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    parts = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(p), p) for p in (JSON_ONE[:10], JSON_ONE[10:]))

    answer = exchange(address, head + parts + b"0\r\nTrailer: x\r\n\r\n")

    assert status_of(answer) == 200


def test_connections_above_the_bound_are_refused(front: Front) -> None:
    with serving(pool_of({"m": models.scale(2.0)}), max_connections=2, front=front) as address:
        held = [socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET /v2/health/live HTTP/1.1\r\n\r\n")
            assert connection.recv(1024).startswith(b"HTTP/1.1 200")

        assert exchange(address, b"GET /v2/health/live HTTP/1.1\r\n\r\n") == b""

        for connection in held:
            connection.close()
