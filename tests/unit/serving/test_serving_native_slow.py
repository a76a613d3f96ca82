"""Peers of the native front that are too slow: the clock is the test's, and `check` is called as the sweep would."""

from __future__ import annotations

from collections.abc import Iterator

import hpack
import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.http2_client import GRPC
from tests.fakes.serving import INFER, pool_of
from tests.fakes.wire import Wire

from holdfast.serving.http2 import frames
from holdfast.serving.native.backend import Backend, NativeOptions, PeerFacts
from holdfast.serving.native.front import Calls, NativeFront
from holdfast.serving.native.http1_peer import Http1Peer
from holdfast.serving.native.http2_peer import Http2Peer
from holdfast.serving.server import Server

ONE = np.ones((1, 4), dtype=np.float32)


# Slow peers: the clock is the test's, and `check` is called as the front's sweep would.


@pytest.fixture
def lab() -> Iterator[tuple[Backend, FakeClock]]:
    """A backend whose loop never runs: nothing below needs an answer from it."""
    clock = FakeClock()
    server = Server(pool_of({"m": models.scale(2.0)}), clock=clock)
    front = NativeFront(Calls(server._table, server._routes, server._service), clock, NativeOptions())
    yield front._backend, clock
    front._loop.close()


def opened(backend: Backend, clock: FakeClock, data: bytes) -> tuple[Http2Peer, Wire]:
    wire = Wire()
    peer = Http2Peer(backend, wire, PeerFacts(), clock.monotonic_s())
    peer.receive(frames.PREFACE + frames.frame(4, 0, 0) + data)
    peer.flush()
    return peer, wire


HEAD = hpack.Encoder().encode([(":method", "POST"), (":scheme", "http"), (":path", INFER), *GRPC])


@pytest.mark.parametrize(
    "data", [b"\0", frames.frame(1, 0, 1, HEAD), frames.frame(1, 4, 1, HEAD)[:-1]], ids=["header", "block", "payload"]
)
def test_frame_that_never_ends_ends_the_connection(lab: tuple[Backend, FakeClock], data: bytes) -> None:
    backend, clock = lab
    peer, _ = opened(backend, clock, data)

    assert not peer.is_overdue(clock.monotonic_s())
    clock.advance(backend.options.frame_timeout_s + 1)

    assert peer.is_overdue(clock.monotonic_s())


def test_body_that_drips_is_answered_and_its_connection_kept(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    peer, wire = opened(backend, clock, frames.frame(1, 4, 1, HEAD) + frames.frame(0, 0, 1, b"\0\0\0\0\x09a"))

    for _ in range(8):
        clock.advance(backend.options.body_timeout_s / 8 + 1)
        peer.receive(frames.frame(0, 0, 1, b"a"))
        assert not peer.is_overdue(clock.monotonic_s())
    peer.flush()

    assert b"too slowly" in wire.data
    assert not wire.is_closed


def test_idle_connection_is_asked_to_go(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    peer, wire = opened(backend, clock, b"")

    clock.advance(backend.options.idle_timeout_s + 1)
    for _ in range(2):
        assert not peer.is_overdue(clock.monotonic_s())
        peer.flush()

    assert wire.is_closed


def test_answers_that_nobody_takes_end_the_connection(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    peer, _ = opened(backend, clock, frames.frame(4, 0, 0, b"\0\4\0\0\0\0"))
    get = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":path", "/v2")])
    peer.receive(frames.frame(1, 5, 1, get))
    peer.flush()

    clock.advance(backend.options.stalled_timeout_s + 1)

    assert peer.is_overdue(clock.monotonic_s())


def test_slow_http_1_request_is_told_so(lab: tuple[Backend, FakeClock]) -> None:
    backend, clock = lab
    wire = Wire()
    peer = Http1Peer(backend, wire, PeerFacts(), clock.monotonic_s())
    peer.receive(b"GET /v2 HTTP/1.1\r\nHost:")

    clock.advance(backend.options.http1.head_timeout_s + 1)
    assert not peer.is_overdue(clock.monotonic_s())
    peer.flush()

    assert wire.data.startswith(b"HTTP/1.1 408 ")
    assert wire.is_closed
