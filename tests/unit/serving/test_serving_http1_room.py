"""Large bodies over HTTP/1.1 are read once there is room for them among all connections; small ones never wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.serving import pool_of
from tests.fakes.wire import Wire

from holdfast.serving.http1 import LARGE_BYTES
from holdfast.serving.native.backend import Backend, NativeOptions, PeerFacts
from holdfast.serving.native.front import Calls, NativeFront
from holdfast.serving.native.http1_peer import Http1Peer
from holdfast.serving.server import Server

SIZE = 2 * LARGE_BYTES
HEAD = "POST /v2/repository/index HTTP/1.1\r\nHost: x\r\n{}\r\n\r\n"  # takes any JSON, at once
GIVEN, UNTOLD = f"Content-Length: {SIZE}", "Transfer-Encoding: chunked"
CHUNK = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
BODY = b'{"ready": true}'.ljust(SIZE)


@pytest.fixture
def backend() -> Iterator[Backend]:
    """With room for one body of SIZE; its loop never runs."""
    clock = FakeClock()
    server = Server(pool_of({"m": models.scale(2.0)}), clock=clock)
    front = NativeFront(Calls(server._table, server._routes, server._service), clock, NativeOptions(large_bytes=SIZE))
    yield front._backend
    front._loop.close()


def peer_of(backend: Backend, head: str) -> tuple[Http1Peer, Wire]:
    wire = Wire()
    peer = Http1Peer(backend, wire, PeerFacts(), 0.0)
    peer.receive(HEAD.format(head).encode())
    return peer, wire


def test_second_large_body_waits_for_the_end_of_the_first(backend: Backend) -> None:
    first, one = peer_of(backend, GIVEN)
    second, other = peer_of(backend, GIVEN)
    assert (one.is_held, other.is_held) == (False, True)

    first.receive(BODY)
    for peer in (first, second):
        peer.flush()
    assert b"HTTP/1.1 200" in one.data
    assert not other.is_held
    second.receive(BODY)
    second.flush()

    assert b"HTTP/1.1 200" in other.data
    assert backend.budget.left == SIZE


def test_body_that_does_not_say_its_size_wants_room_once_it_is_large(backend: Backend) -> None:
    first, one = peer_of(backend, UNTOLD)
    for _ in range(LARGE_BYTES // 0x10000):
        first.receive(CHUNK)
    assert backend.budget.left == SIZE

    first.receive(CHUNK)
    assert backend.budget.left == 0
    _, other = peer_of(backend, GIVEN)
    assert (one.is_held, other.is_held) == (False, True)
    first.receive(b"0\r\n\r\n")

    assert backend.budget.left in (0, SIZE)  # the second has it, or takes it in its turn
    assert first._room is None


@pytest.mark.parametrize("ends", ["lost", "refused"])
def test_room_is_given_back_when_its_connection_ends(backend: Backend, ends: str) -> None:
    first, _ = peer_of(backend, GIVEN)
    second, other = peer_of(backend, GIVEN)

    if ends == "lost":
        first.lost()
    else:
        backend.clock.advance(backend.options.http1.body_timeout_s + 1)  # type: ignore[attr-defined]  # a FakeClock
        assert not first.is_overdue(backend.clock.monotonic_s())
    second.flush()

    assert not other.is_held
    second.lost()
    assert backend.budget.left == SIZE


def test_one_that_waits_and_leaves_wants_nothing_any_more(backend: Backend) -> None:
    first, _ = peer_of(backend, GIVEN)
    second, _ = peer_of(backend, GIVEN)

    second.lost()
    first.lost()

    assert backend.budget.left == SIZE


def test_small_body_never_waits(backend: Backend) -> None:
    peer_of(backend, GIVEN)
    small, wire = peer_of(backend, f"Content-Length: {LARGE_BYTES}")

    assert not wire.is_held
    small.receive(BODY[:LARGE_BYTES])
    small.flush()

    assert b"HTTP/1.1 200" in wire.data
