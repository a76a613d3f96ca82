"""Connections that end badly, by the way they end; each is opened, misused and dropped by one call."""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import hpack
import numpy as np
from tests.fakes.http2_client import GRPC
from tests.fakes.serving import INFER, TIMEOUT_S

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.server import Address

RESET = struct.pack("ii", 1, 0)  # linger, for no time: the close is a RST
STREAM = "/inference.GRPCInferenceService/ModelStreamInfer"
WATCH = "/grpc.health.v1.Health/Watch"
OPENING = PREFACE + frame(4, 0, 0)
Rude = Callable[[socket.socket], None]


def head(path: str, *more: tuple[str, str]) -> bytes:
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), *GRPC, *more]
    return hpack.Encoder().encode(fields)


def framed(model: str, x: np.ndarray) -> bytes:
    message = oip.encode_request(TensorRequest(model, "", "", {"x": x}))
    return b"\0" + len(message).to_bytes(4, "big") + message


QUICK = framed("m", np.ones((1, 4), dtype=np.float32))
SLOW = framed("slow", np.ones(1, dtype=np.float32))
LARGE = framed("large", np.zeros((100_000, 4), dtype=np.float32))  # 1.6 MB
DEADLINE = ("grpc-timeout", "200m")  # of the model that never ends by itself
BIG_BODY = b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: 9000000\r\n\r\n" + bytes(100_000)


def sends(data: bytes) -> Rude:
    return lambda connection: connection.sendall(data)


def call(stream_id: int, block: bytes, body: bytes) -> bytes:
    return frame(1, 4, stream_id, block) + frame(0, 1, stream_id, body)


def answered(connection: socket.socket) -> None:
    """A good call, and its answer taken; only the goodbye is missing."""
    connection.sendall(OPENING + call(1, head(INFER), QUICK))
    data = b""
    while b"grpc-status\x010" not in data:
        part = connection.recv(65_536)
        assert part, data
        data += part


def cancels(connection: socket.socket) -> None:
    """Quick and slow calls, all cancelled."""
    slow = b"".join(call(n, head(INFER, DEADLINE), SLOW) for n in (1, 3))
    quick = b"".join(call(n, head(INFER), QUICK) for n in range(5, 25, 2))
    connection.sendall(OPENING + slow + quick + b"".join(frame(3, 0, n, b"\0\0\0\x08") for n in range(1, 25, 2)))
    connection.recv(1)


def uploads_a_part(connection: socket.socket) -> None:
    """The first quarter of a large message, in frames."""
    parts = [frame(0, 0, 1, LARGE[at : at + 16_384]) for at in range(0, 260_000, 16_384)]
    connection.sendall(OPENING + frame(1, 4, 1, head(INFER)) + b"".join(parts))


def takes_no_answer(connection: socket.socket) -> None:
    """A large answer through a window of a few octets."""
    connection.sendall(OPENING + frame(4, 0, 0, b"\0\4\0\0\0\x10") + call(1, head("/v2"), b""))
    connection.sendall(b"".join(call(n, head(INFER), QUICK) for n in range(3, 200, 2)))


RUDE: Mapping[str, Rude] = {
    "says_nothing": sends(b""),
    "half_a_preface": sends(PREFACE[:11]),
    "half_a_frame": sends(OPENING + frame(1, 4, 1, head(INFER))[:20]),
    "half_a_block": sends(OPENING + frame(1, 0, 1, head(INFER))),
    "half_a_body": sends(OPENING + frame(1, 4, 1, head(INFER)) + frame(0, 0, 1, QUICK[:9])),
    "does_not_wait": sends(OPENING + call(1, head(INFER), QUICK)),
    "slow_call": sends(OPENING + call(1, head(INFER, DEADLINE), SLOW)),
    "garbage": sends(OPENING + bytes(range(256)) * 4),
    "http_1_head": sends(b"GET /v2 HTTP/1.1\r\nHost"),
    "http_1_body": sends(BIG_BODY),
    "http_1_pipeline": sends(b"GET /v2 HTTP/1.1\r\n\r\n" * 50),
    "open_stream": sends(OPENING + frame(1, 4, 1, head(STREAM)) + frame(0, 0, 1, QUICK * 3)),
    "open_watch": sends(OPENING + frame(1, 4, 1, head(WATCH)) + frame(0, 1, 1, bytes(5))),
    "answered": answered,
    "cancels": cancels,
    "uploads_a_part": uploads_a_part,
    "takes_no_answer": takes_no_answer,
}


def be_rude(address: Address, how: str, *, reset: bool) -> None:
    """One connection; the server may end it first."""
    with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as connection:
        if reset:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        with contextlib.suppress(OSError):
            RUDE[how](connection)


def be_rude_over_tls(address: Address, authority: Path, how: str) -> None:
    """After the handshake the connection is reset under TLS, without its goodbye."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["http/1.1"] if how.startswith("http_1") else ["h2"])
    plain = socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection, contextlib.suppress(OSError):
        RUDE[how](connection)


def break_a_handshake(address: Address) -> None:
    """The beginning of a ClientHello, and gone."""
    with socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(40))
