"""The native front without sockets: one connection, and a loop that turns when it is told to; and calls for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor

import hpack
from tests.fakes.clock import FakeClock
from tests.fakes.wire import Wire

from holdfast.inference.pool import ModelPool
from holdfast.serving.authorisation import AccessRules
from holdfast.serving.grpc_wire import framed_prefix
from holdfast.serving.http2.frames import (
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PREFACE,
    Setting,
    frame,
    settings,
    window_update,
)
from holdfast.serving.native.backend import PeerFacts
from holdfast.serving.native.front import Calls, NativeFront, NativeOptions
from holdfast.serving.native.http2_peer import Http2Peer
from holdfast.serving.protocols import Pending, TapEvent
from holdfast.serving.rpc import MODEL_INFER
from holdfast.serving.scheduler import ModelScheduler
from holdfast.serving.server import Address, Server, ServerOptions
from holdfast.serving.statistics import Statistics

FIELDS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", MODEL_INFER),
    (":authority", "localhost"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]


class Tap:
    """Keeps what it is told, arrays too."""

    def __init__(self) -> None:
        self.events: list[TapEvent] = []

    def on_response(self, event: TapEvent) -> None:
        self.events.append(event)


class CountingScheduler(ModelScheduler):
    """Counts the requests that go the whole way: those that share a run on the way here do not come as one."""

    taken = 0

    def submit(self, batch: Sequence[Pending]) -> None:
        self.taken += len(batch)
        super().submit(batch)


class AtOnce(Executor):
    """Does what it is given before it comes back; what that posts is for the next turn."""

    def submit(self, work: Callable[..., object], /, *given: object, **named: object) -> None:  # type: ignore[override]
        work(*given, **named)


class NativeBench:
    """Serves a pool to one peer that opens its windows wide."""

    def __init__(
        self, pool: ModelPool, *, memoise: bool = True, rules: AccessRules | None = None, facts: PeerFacts | None = None
    ) -> None:
        self.pool = pool
        self.tap = Tap()
        self.clock = FakeClock()
        options = ServerOptions(Address("127.0.0.1", 0), rules=rules or AccessRules())
        self.server = Server(pool, (self.tap,), options, self.clock)
        calls = Calls(self.server._table, self.server._routes, self.server._service)
        self.front = NativeFront(calls, self.clock, NativeOptions(memoise=memoise))
        object.__setattr__(self.front._backend, "executor", AtOnce())  # frozen for everybody else
        self.statistics: Statistics = self.server._statistics
        self.scheduler = CountingScheduler(pool, self.clock, lambda callback: callback(), observer=self.statistics)
        self.front.tick.serve_with(self.scheduler)
        self.front.tick._is_set = True  # turned by hand: nothing may go to a loop that does not run
        self.wire = Wire()
        self.peer = Http2Peer(self.front._backend, self.wire, facts or PeerFacts(), self.clock.monotonic_s())
        self.peer.receive(PREFACE + settings({Setting.INITIAL_WINDOW_SIZE: 2**20}) + window_update(0, 2**30))
        self.turn()

    def turn(self) -> bytes:
        """One turn of the loop; returns what was written."""
        for _ in range(2):  # the second for what the first posted
            self.front._loop.run_until_complete(asyncio.sleep(0))
            self.front.tick._run()
            self.front.tick._is_set = True
        data, self.wire.data = self.wire.data, b""
        return data

    def close(self) -> None:
        self.front._loop.close()
        self.front._executor.shutdown()


class Writer:
    """Frames calls as gRPC's C core does: fields that vary are literals that enter no table."""

    def __init__(self) -> None:
        self._encoder = hpack.Encoder()
        self.stream_id = -1

    def call(self, message: bytes, *more: tuple[str, str], cut: int = 1 << 14, is_packed: bool = False) -> bytes:
        """A call on the next stream, its body in frames of at most `cut` octets."""
        self.stream_id += 2
        literals = [hpack.NeverIndexedHeaderTuple(*each) for each in more]
        block = self._encoder.encode([*FIELDS, *literals], huffman=False)
        body = bytes((is_packed,)) + framed_prefix(len(message))[1:] + message
        pieces = [body[at : at + cut] for at in range(0, len(body), cut)]
        *first, last = (frame(0, 0, self.stream_id, piece) for piece in pieces)
        ended = last[:4] + bytes((END_STREAM,)) + last[5:]
        return b"".join((frame(HEADERS, END_HEADERS, self.stream_id, block), *first, ended))
