"""The native front: listeners, connections and their ends, on one thread with one loop.

Rules: no model is loaded, no disk or lock waited for on this thread; connections are bounded, and what one of them does
never reaches another. `stop` closes the listeners, lets every request under way be answered, then closes the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.serving.native.alone import Alone
from holdfast.serving.native.backend import Backend, NativeOptions, PeerFacts
from holdfast.serving.native.budget import Budget, Gate
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.native.connection import NativeConnection
from holdfast.serving.native.http_codec import HttpCodec
from holdfast.serving.native.lane import Lane
from holdfast.serving.native.tick import Tick
from holdfast.serving.native.tls import ServerTls
from holdfast.serving.native.untaken import those_to_end
from holdfast.serving.protocols import Scheduler
from holdfast.serving.refusals import CONNECTION, HANDSHAKE, TOO_MANY
from holdfast.serving.routes import Routes
from holdfast.serving.rpc import RpcTable
from holdfast.serving.service import InferenceService

logger = logging.getLogger(__name__)

SWEEP_S = 1.0  # how often overdue peers and renewed certificates are looked for
ACCEPT_PAUSE_S = 0.1  # after the system refused us a connection (out of file descriptors): let some end
HANDSHAKE_TIMEOUT_S = 10.0
WORKERS = 8  # for slow calls and messages of streams
DRAIN_POLL_S = 0.05
ROOM_BYTES = 262_144 + 4_096  # of one read from a socket: a stream's window, and the head before it
SWEEPS_OF_IDLENESS = 10  # without a large message, until their memory is given back
SWITCH_S = (
    5e-4  # how long a thread that loads a model may keep the interpreter while a request waits; Python's own: 5 ms
)


@dataclass(frozen=True, slots=True)
class Listener:
    """A listening socket, and what is known of everybody who comes in there."""

    socket: socket.socket
    is_admin: bool = False
    is_local: bool = True
    tls: ServerTls | None = None


@dataclass(frozen=True, slots=True)
class Calls:
    """What is served."""

    rpc: RpcTable
    routes: Routes
    service: InferenceService


class NativeFront:
    """Serves gRPC and HTTP on its listeners."""

    def __init__(
        self,
        calls: Calls,
        clock: Clock,
        options: NativeOptions,
        make_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop,
    ) -> None:
        self._clock = clock
        self._options = options
        self._loop = make_loop()
        codec, in_flight = InferCodec(), Gate(options.max_in_flight, "requests")
        lane = Lane(codec, calls.service, clock, options.max_in_flight)
        lane.pass_to(Alone(codec, calls.rpc, calls.service, clock))
        self.tick = Tick(self._loop, lane, in_flight)
        self._executor = ThreadPoolExecutor(WORKERS, thread_name_prefix="calls")
        self._backend = Backend(
            calls.rpc,
            calls.routes,
            calls.service,
            clock,
            self.tick,
            Budget(options.large_bytes),
            self._executor,
            options,
            in_flight,
            Gate(options.max_long_calls, "streams"),
            codec,
            lane,
            HttpCodec(codec),
        )
        self._thread = threading.Thread(target=self._run, name="native", daemon=True)
        self._listeners: dict[socket.socket, Listener] = {}
        self._connections: set[NativeConnection] = set()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._sweeps = 0
        self._room = memoryview(bytearray(ROOM_BYTES))
        self._ended = asyncio.Event()

    def start(self, listeners: Sequence[Listener], scheduler: Scheduler) -> None:
        """Begin to accept; the sockets are ours from here on. Returns when requests are answered."""
        self.tick.serve_with(scheduler)
        for listener in listeners:
            listener.socket.setblocking(False)
            self._listeners[listener.socket] = listener
        self._thread.start()

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    def stop_accepting(self) -> None:
        """Close the listeners; connections that are open go on."""
        asyncio.run_coroutine_threadsafe(self._close_listeners(), self._loop).result()

    def stop(self, deadline_s: float) -> None:
        """Answer what is under way within `deadline_s`, then close what is left. Not on the loop's thread."""
        asyncio.run_coroutine_threadsafe(self._drain(deadline_s), self._loop).result()
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        before_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_S)
        try:
            with contextlib.closing(self._loop):
                self._loop.run_until_complete(self._main())
        finally:
            sys.setswitchinterval(before_s)

    async def _main(self) -> None:
        for listener in self._listeners:
            self._resume_accepting(listener)
        sweep = self._loop.call_later(SWEEP_S, self._sweep)
        await self._ended.wait()
        sweep.cancel()
        await self._close_listeners()
        await asyncio.sleep(0)  # the last that was accepted begins: cancelled before, it would not close its connection
        for task in self._handshakes:
            task.cancel()
        for connection in tuple(self._connections):
            connection.transport.abort()
        while self._connections or self._handshakes:
            await asyncio.sleep(0)

    async def _close_listeners(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        self._listeners.clear()

    async def _drain(self, deadline_s: float) -> None:
        await self._close_listeners()
        until_s = self._clock.monotonic_s() + deadline_s
        for connection in tuple(self._connections):
            connection.drain()
        while self._connections and self._clock.monotonic_s() < until_s:
            await asyncio.sleep(DRAIN_POLL_S)

    def _resume_accepting(self, listener: socket.socket) -> None:
        if listener in self._listeners:
            self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            accepted, address = listener.accept()
        except BlockingIOError:
            return  # the peer left before we looked
        except OSError as error:
            logger.warning("connection not accepted", extra={"reason": error.strerror})
            self._loop.remove_reader(listener)
            self._loop.call_later(ACCEPT_PAUSE_S, self._resume_accepting, listener)
            return
        if len(self._connections) + len(self._handshakes) >= self._options.max_connections:
            accepted.close()
            self._backend.service.refusals.count(CONNECTION, TOO_MANY)
            return
        accepted.setblocking(False)
        if accepted.family != socket.AF_UNIX:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        known = self._listeners[listener]
        facts = PeerFacts(_peer_name(address), known.is_admin, known.is_local)
        task = self._loop.create_task(self._open(accepted, facts, known.tls))
        self._handshakes.add(task)
        task.add_done_callback(self._handshakes.discard)

    async def _open(self, accepted: socket.socket, facts: PeerFacts, tls: ServerTls | None) -> None:
        connection = NativeConnection(self._backend, facts, self._connections.discard, self._room)
        try:
            await self._loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=None if tls is None else tls.context,
                ssl_handshake_timeout=None if tls is None else HANDSHAKE_TIMEOUT_S,
            )
        except OSError:  # ssl.SSLError among them: the peer left, or is none of ours
            accepted.close()
            self._backend.service.refusals.count(CONNECTION, HANDSHAKE)
            return
        except BaseException:
            if connection.is_open:  # cancelled just when it was: nobody else knows of its transport
                self._connections.add(connection)  # until it is lost, for which `_main` waits
                connection.transport.abort()
            else:
                accepted.close()
            raise
        if not connection.transport.is_closing():
            self._connections.add(connection)

    def _sweep(self) -> None:
        now_s = self._clock.monotonic_s()
        for connection in tuple(self._connections):
            connection.check(now_s)
        for connection in those_to_end(self._connections, self._options.untaken_bytes, now_s):
            connection.let_go()
        for listener in self._listeners.values():
            if listener.tls is not None:
                listener.tls.reload_if_changed()
        self._sweeps += 1
        if self._sweeps % SWEEPS_OF_IDLENESS == 0:
            self._backend.budget.buffers.forget_if_idle()
        self._loop.call_later(SWEEP_S, self._sweep)


def _peer_name(address: object) -> str:
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) and len(address) >= 2 else "unix"
