"""The server: one public port and perhaps an admin socket, gRPC and HTTP behind each, started and stopped as one thing.

Rules: `start` returns when requests are answered; `stop` says "not ready", closes the port, lets running requests end,
then closes what is left. Where it may listen, and who may do what, is decided in `authorisation.py`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from holdfast.clock import Clock, SystemClock
from holdfast.errors import UsageError
from holdfast.inference.pool import ModelPool
from holdfast.serving.admission import SchedulerOptions
from holdfast.serving.authorisation import OPEN, AccessRules, check_exposure, check_unix_exposure
from holdfast.serving.control import Control, Offer
from holdfast.serving.http1 import HttpLimits
from holdfast.serving.http2.limits import Http2Limits, PingRules
from holdfast.serving.listening import PRIVATE_MODE, SocketFile, listen_tcp, listen_unix, resolve
from holdfast.serving.native.backend import NativeOptions
from holdfast.serving.native.front import Calls, Listener, NativeFront
from holdfast.serving.native.loop import LoopKind, loop_maker
from holdfast.serving.native.tls import ServerTls, TlsFiles
from holdfast.serving.protocols import ModelRepository, RequestTap
from holdfast.serving.routes import Routes
from holdfast.serving.rpc import Origin, RpcTable
from holdfast.serving.scheduler import ModelScheduler, Post
from holdfast.serving.service import MAX_IN_FLIGHT, InferenceService
from holdfast.serving.shared_memory import SharedMemory
from holdfast.serving.statistics import Statistics

if TYPE_CHECKING:
    from holdfast.serving.door import GrpcioDoor

DEFAULT_PORT = 8080
MAX_MESSAGE_BYTES = 64 * 1024**2  # 64 MiB: a batch of 100 images of 224 x 224 in float32, uncompressed
STOP_DEADLINE_S = 10.0
UNIX = "unix:"

Front = Literal["native", "grpcio"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a host and port, or the path of a unix socket."""

    host: str
    port: int
    path: Path | None = None

    def __str__(self) -> str:
        if self.path is not None:
            return f"{UNIX}{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def unix(cls, path: Path) -> Address:
        """A unix socket."""
        return cls("", 0, path)

    @classmethod
    def parse(cls, text: str) -> Address:
        """HOST:PORT, an IPv6 address in brackets; or unix:PATH, as gRPC's clients write it (unix:///PATH too).

        Raises:
            UsageError: not of that form.
        """
        if text.startswith(UNIX):
            return cls.unix(_unix_path(text))
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
            raise UsageError(f"expected HOST:PORT, like 127.0.0.1:{DEFAULT_PORT}, or unix:/PATH, got {text!r}")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen, and how much to take. Port 0 = one that is free. Every address speaks gRPC and HTTP.

    A unix socket is local, and the kernel guards it: it has no TLS, and `unix_mode` says who can reach it.

    front: "native" serves everything on one loop; "grpcio" is the fallback on other people's gRPC.
    memoise: of the native front: remember heads of messages; off, the same bytes go out, only later.
    loop: of the native front.
    """

    listen: Address = Address("127.0.0.1", DEFAULT_PORT)
    also_listen: tuple[Address, ...] = ()
    insecure: bool = False
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_connections: int = 512
    max_in_flight: int = MAX_IN_FLIGHT
    rules: AccessRules = OPEN
    admin_socket: Path | None = None
    front: Front = "native"
    loop: LoopKind = "asyncio"
    tls: TlsFiles | None = None
    memoise: bool = True
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    unix_mode: int = PRIVATE_MODE
    pings: PingRules = field(default_factory=PingRules)


class Server:
    """Serves the models of a pool over the Open Inference Protocol."""

    def __init__(
        self,
        pool: ModelPool,
        taps: Sequence[RequestTap] = (),
        options: ServerOptions | None = None,
        clock: Clock | None = None,
        repository: ModelRepository | None = None,
    ) -> None:
        options = options or ServerOptions()
        clock = clock or SystemClock()
        self._options = options
        statistics = Statistics(pool, clock)
        self._service = InferenceService(
            pool, (*taps, statistics), clock, max_in_flight=options.max_in_flight, observer=statistics
        )
        regions = SharedMemory(max_tensor_bytes=options.max_message_bytes) if options.rules.shared_memory else None
        control = Control(Offer(pool, self._service, statistics, clock, options.rules, repository, regions))
        self._table = RpcTable(control, self._service, clock)
        self._routes = Routes(control, self._service)
        self.addresses: tuple[Address, ...] = ()
        self._clock = clock
        self._doors: list[GrpcioDoor] = []
        self._files: list[SocketFile] = []
        self._native: NativeFront | None = None
        self._pool, self._statistics = pool, statistics
        self._scheduler: ModelScheduler | None = None

    def start(self) -> Address:
        """Listen. Returns the address once requests to it are answered.

        Raises:
            UsageError: the port is in use or not ours to take, or an open port off loopback was not asked for.
            MissingExtraError: the loop that was asked for is not installed.
        """
        options = self._options
        make_loop = loop_maker(options.loop)
        tls = None if options.tls is None else ServerTls(options.tls)
        listeners = self._open_listeners()
        if options.front == "native":
            known = [Listener(at, of.is_admin, of.is_local, _tls_of(at, tls)) for at, of in listeners]
            self._start_native(known, make_loop)
            return self.addresses[0]
        self._start_doors(listeners, tls)
        return self.addresses[0]

    def _start_doors(self, listeners: Sequence[tuple[socket.socket, Origin]], tls: ServerTls | None) -> None:
        # not at the top: gRPC's library costs 9 MB and a tenth of a second, and only this fallback needs it
        from holdfast.serving.door import DoorLimits, GrpcioDoor

        options = self._options
        limits = DoorLimits(options.max_message_bytes, options.max_connections, options.max_in_flight, options.pings)
        self._schedule(lambda callback: callback())
        for opened, origin in listeners:
            door = GrpcioDoor(self._calls(), self._clock, limits, origin, _tls_of(opened, tls))
            self._doors.append(door)
            door.start(opened)

    def _open_listeners(self) -> list[tuple[socket.socket, Origin]]:
        """All listeners, or none: the public ones in the order of `addresses`, then the admin socket."""
        options = self._options
        opened: list[tuple[socket.socket, Origin]] = []
        try:
            for address in (options.listen, *options.also_listen):
                listener, is_local = self._open(address)
                opened.append((listener, Origin(is_admin=False, is_local=is_local)))
            self.addresses = tuple(_address_of(at) for at, _ in opened)
            if options.admin_socket is not None:
                listener, file = listen_unix(options.admin_socket)
                self._files.append(file)
                opened.append((listener, Origin(is_admin=True)))
        except UsageError:
            for listener, _ in opened:
                listener.close()
            self._remove_sockets()
            raise
        return opened

    def _open(self, address: Address) -> tuple[socket.socket, bool]:
        """A public listener, and whether only this machine can reach it."""
        options, has_tls = self._options, self._options.tls is not None
        if address.path is not None:
            check_unix_exposure(options.rules, str(address))
            listener, file = listen_unix(address.path, options.unix_mode)
            self._files.append(file)
            return listener, True
        _, _, is_loopback = resolve(address.host, address.port)
        check_exposure(options.rules, str(address), is_loopback=is_loopback, has_tls=has_tls, insecure=options.insecure)
        return listen_tcp(address.host, address.port), is_loopback

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Drain within `deadline_s`, then end what is left. Does nothing if not started."""
        if self._native is not None:
            self._stop_native(deadline_s)
            return
        if not self._doors:
            return
        self._service.drain()
        for door in self._doors:
            door.stop_accepting()
        stops = [threading.Thread(target=door.stop, args=(deadline_s,), name="door-stop") for door in self._doors]
        for stop in stops:
            stop.start()
        for stop in stops:
            stop.join()
        self._doors.clear()
        self._end_scheduler()
        self._remove_sockets()

    def _start_native(self, listeners: Sequence[Listener], make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        options = self._options
        bounds = NativeOptions(
            max_message_bytes=options.max_message_bytes,
            max_connections=options.max_connections,
            max_in_flight=options.max_in_flight,
            http2=Http2Limits(pings=options.pings),
            http1=HttpLimits(max_body_bytes=options.max_message_bytes),
            memoise=options.memoise,
        )
        self._native = NativeFront(self._calls(), self._clock, bounds, make_loop)
        self._native.start(listeners, self._schedule(self._native.tick.post_run))

    def _calls(self) -> Calls:
        return Calls(self._table, self._routes, self._service)

    def _schedule(self, post: Post) -> ModelScheduler:
        """The one that decides when a request runs, whatever front or thread it came by."""
        self._scheduler = ModelScheduler(
            self._pool, self._clock, post, options=self._options.scheduler, observer=self._statistics
        )
        self._service.schedule_with(self._scheduler)
        return self._scheduler

    def _stop_native(self, deadline_s: float) -> None:
        assert self._native is not None
        self._service.drain()
        self._native.stop(deadline_s)
        self._native = None
        self._end_scheduler()
        self._remove_sockets()

    def _end_scheduler(self) -> None:
        assert self._scheduler is not None
        self._scheduler.close()
        self._scheduler = None

    def _remove_sockets(self) -> None:
        for file in self._files:
            file.remove()
        self._files.clear()


def _unix_path(text: str) -> Path:
    path = text.removeprefix(UNIX)
    if path.startswith("//"):
        host, slash, rest = path.removeprefix("//").partition("/")
        if host or not slash:
            raise UsageError(f"expected unix:PATH or unix:///PATH, got {text!r}")
        path = slash + rest
    if not path or "\0" in path or path.endswith("/"):
        raise UsageError(f"expected the path of a socket after unix:, like unix:/run/holdfast.sock, got {text!r}")
    return Path(path)


def _address_of(listener: socket.socket) -> Address:
    name = listener.getsockname()
    return Address.unix(Path(name)) if listener.family == socket.AF_UNIX else Address(*name[:2])


def _tls_of(listener: socket.socket, tls: ServerTls | None) -> ServerTls | None:
    return None if listener.family == socket.AF_UNIX else tls
