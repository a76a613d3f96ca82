"""Answers that nobody takes are bounded over all connections, and it is not the honest reader who pays for it."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace

import hpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.http2_client import GRPC, Http2Client
from tests.fakes.serving import INFER, TIMEOUT_S, exchange, pool_of

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.grpc_wire import framed_prefix
from holdfast.serving.http2.frames import DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, SETTINGS, frame
from holdfast.serving.native.untaken import those_to_end
from holdfast.serving.server import Address, Server, ServerOptions

MIB = 1_048_576
NO_WINDOW = frame(SETTINGS, 0, 0, b"\0\4\0\0\0\0")
HEAD = hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", INFER), *GRPC])


@dataclass(frozen=True)
class Held:
    """A connection as `those_to_end` sees it."""

    name: str
    untaken_bytes: int
    taken_s: float


def ended(*holders: Held, max_bytes: int = 256, now_s: float = 100.0) -> list[str]:
    return [holder.name for holder in those_to_end(holders, max_bytes, now_s)]


def test_nobody_goes_while_there_is_room() -> None:
    assert ended(Held("a", 200, 0.0), Held("b", 56, 0.0)) == []


def test_who_takes_nothing_goes_before_who_reads_slowly() -> None:
    assert ended(Held("slow", 200, 99.5), Held("dead", 100, 40.0)) == ["dead"]


def test_who_holds_most_goes_first_among_equals() -> None:
    assert ended(Held("a", 100, 100.0), Held("b", 300, 100.0), Held("c", 100, 100.0)) == ["b"]


def test_small_and_old_stays_beside_large_and_older() -> None:
    assert ended(Held("small", 1, 0.0), Held("large", 1_000, 50.0)) == ["large"]


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), max_size=12), st.integers(0, 300))
def test_what_is_left_is_within_the_bound(sizes: list[tuple[int, int]], max_bytes: int) -> None:
    holders = [Held(str(n), size, float(at)) for n, (size, at) in enumerate(sizes)]

    gone = those_to_end(holders, max_bytes, 100.0)

    left = sum(holder.untaken_bytes for holder in holders if holder not in gone)
    assert left <= max_bytes
    assert all(holder.untaken_bytes for holder in gone)
    assert not gone or left + gone[-1].untaken_bytes > max_bytes


@pytest.fixture
def address() -> Iterator[Address]:
    """A server whose connections may hold 1 MiB together."""
    server = Server(pool_of({"i": models.identity()}), options=ServerOptions(Address("127.0.0.1", 0)))
    address = server.start()
    assert server._native is not None
    server._native._options = replace(server._native._options, untaken_bytes=MIB)
    yield address
    server.stop(2.0)


def test_clients_that_read_nothing_are_let_go_together_and_others_are_served(address: Address) -> None:
    message = oip.encode_request(TensorRequest("i", "", "", {"x": np.zeros((1_000, 4), dtype=np.float32)}))
    body = framed_prefix(len(message)) + message
    calls = b"".join(
        frame(HEADERS, END_HEADERS, stream, HEAD) + frame(DATA, 0, stream, body[:16_000])
        + frame(DATA, END_STREAM, stream, body[16_000:])
        for stream in range(1, 80, 2)
    )  # fmt: skip
    sockets = [socket.create_connection((address.host, address.port), timeout=TIMEOUT_S) for _ in range(4)]

    with Http2Client(address) as reader:
        for each in sockets:  # 640 kB of answers each, well within what one connection may hold
            each.sendall(PREFACE + NO_WINDOW + calls)
        gone = select.poll()
        for each in sockets:
            gone.register(each, select.POLLHUP | select.POLLERR)
        first = gone.poll(TIMEOUT_S * 1_000)
        assert reader.ask(message).grpc_status == (0, "")

    assert first
    for each in sockets:
        each.close()
    page = exchange(address, b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert b'reason="untaken"' in page
