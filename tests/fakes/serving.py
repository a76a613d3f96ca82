"""A running server for tests, and plain sockets and channels to talk to it with."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import grpc

from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSource, load_session
from holdfast.serving.protocols import RequestTap
from holdfast.serving.server import Address, Front, Server, ServerOptions

FRONTS: tuple[Front, ...] = ("native", "grpcio")
TIMEOUT_S = 20.0  # of a client's wait; generous, because nothing asserts it
INFER = "/inference.GRPCInferenceService/ModelInfer"


def pool_of(models: Mapping[str, bytes]) -> ModelPool:
    """A pool that serves these model files as version 1."""
    pool = ModelPool()
    for name, data in models.items():
        pool.swap(name, "1", load_session(ModelSource(data)))
    return pool


@contextmanager
def serving(
    pool: ModelPool,
    *taps: RequestTap,
    max_message_bytes: int = 4 * 1024**2,
    max_connections: int = 64,
    front: Front = "native",
    memoise: bool = True,
) -> Iterator[Address]:
    """A server on a free port of loopback, stopped afterwards."""
    options = ServerOptions(
        Address("127.0.0.1", 0),
        max_message_bytes=max_message_bytes,
        max_connections=max_connections,
        front=front,
        memoise=memoise,
    )
    with running(pool, options, *taps) as address:
        yield address


@contextmanager
def running(pool: ModelPool, options: ServerOptions, *taps: RequestTap) -> Iterator[Address]:
    """A server with these options, stopped afterwards."""
    server = Server(pool, taps, options)
    address = server.start()
    try:
        yield address
    finally:
        server.stop(2.0)


def connect(address: Address) -> socket.socket:
    """A connection to a server, over TCP or a unix socket."""
    if address.path is None:
        return socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(TIMEOUT_S)
    try:
        connection.connect(str(address.path))
    except OSError:
        connection.close()
        raise
    return connection


def exchange(address: Address, data: bytes) -> bytes:
    """Send bytes, close our half, and return all that comes back. A reset counts as the end."""
    with connect(address) as connection:
        answer = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65_536):
                answer += part
        except OSError:
            pass  # reset, or closed before we could close our half
        return answer


def http_infer(model: str, body: bytes, *headers: str) -> bytes:
    """The bytes of a POST to a model, closing afterwards."""
    lines = [f"POST /v2/models/{model}/infer HTTP/1.1", "Host: test", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def status_of(answer: bytes) -> int:
    """The status of an HTTP answer; 0 if there was none."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def call(address: Address, data: bytes, method: str = INFER) -> bytes:
    """One unary gRPC call with these bytes. Raises grpc.RpcError."""
    with grpc.insecure_channel(str(address)) as channel:
        answer: bytes = channel.unary_unary(method)(data, timeout=TIMEOUT_S)
        return answer
