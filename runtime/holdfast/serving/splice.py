"""The public port of the grpcio front: what a connection speaks decides whether it goes to gRPC or to HTTP/1.1.

Rules: an HTTP/2 preface is piped to the gRPC backend's unix socket, anything else is handed to the HTTP front with what
was read; TLS ends here, and ALPN decides instead. Who the client is travels with the connection, as the name of its
socket in a folder that nobody else can enter. Connections are bounded, and one that is silent, stalled or broken is
closed without touching another. Runs on a thread of its own; no model or lock is waited for there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.serving.native.tls import ServerTls, spiffe_id_of
from holdfast.serving.pipe import PipeLimits, pipe, tls_pipe
from holdfast.serving.refusals import CONNECTION, HANDSHAKE, SILENT, TOO_MANY, Refusals

logger = logging.getLogger(__name__)

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4
GRPC_SOCKET = "grpc"
ALPN = ("http/1.1", "h2")  # ours goes first: who speaks both gets HTTP/1.1, as this front has only gRPC over HTTP/2
CHUNK_BYTES = 65_536
ACCEPT_PAUSE_S = 0.1  # after the system refused us a connection (out of file descriptors): let some end


@dataclass(frozen=True, slots=True)
class SpliceLimits:
    """Bounds of the public port."""

    max_connections: int = 512
    first_bytes_timeout_s: float = 10.0
    pipe: PipeLimits = field(default_factory=PipeLimits)


@dataclass(frozen=True, slots=True)
class Backends:
    """Who answers. `folder` is ours alone and holds gRPC's socket, GRPC_SOCKET.

    serve_http: takes a blocking connection, what was read of it, and the id in its client's certificate.
    count_http: connections that it holds. ids: of the clients behind gRPC's connections, by the connection's name.
    """

    folder: Path
    serve_http: Callable[[socket.socket, bytes, str], None]
    count_http: Callable[[], int]
    ids: dict[str, str] = field(default_factory=dict)


class Splice:
    """Accepts connections and passes each to its front."""

    def __init__(
        self,
        listener: socket.socket,
        backends: Backends,
        refusals: Refusals,
        limits: SpliceLimits,
        tls: ServerTls | None = None,
    ) -> None:
        self._listener = listener
        self._backends = backends
        self._refusals = refusals
        self._tls = tls
        self._named = 0
        self._http_in_tls = 0  # held by us and by the HTTP front: counted once
        self._limits = limits
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="splice", daemon=True)
        self._is_open = True
        self._connections: dict[asyncio.Task[None], socket.socket] = {}
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Begin to accept; the listener is ours from here on."""
        self._listener.setblocking(False)
        self._thread.start()

    def stop_accepting(self) -> None:
        """Close the public port; connections that are open go on."""
        asyncio.run_coroutine_threadsafe(self._close_listener(), self._loop).result()

    def stop(self) -> None:
        """Close every connection and end the thread."""
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._main())

    async def _main(self) -> None:
        self._resume_accepting()
        await self._ended.wait()
        await self._close_listener()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # a handshake that was broken off closes its connection one turn later

    async def _close_listener(self) -> None:
        if self._is_open:
            self._is_open = False
            self._loop.remove_reader(self._listener)
            self._listener.close()

    def _resume_accepting(self) -> None:
        if self._is_open:
            self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        # in a callback, not in a coroutine: one that is cancelled may lose a connection it has accepted
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return  # the peer left before we looked
        except OSError as error:
            logger.warning("connection not accepted", extra={"reason": error.strerror})
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_PAUSE_S, self._resume_accepting)
            return
        held = len(self._connections) + self._backends.count_http() - self._http_in_tls
        if held >= self._limits.max_connections:
            self._refusals.count(CONNECTION, TOO_MANY)  # first: whoever sees the end may look for the number
            connection.close()
            return
        task = asyncio.create_task(self._connection(connection))
        self._connections[task] = connection
        task.add_done_callback(self._connection_ended)

    def _connection_ended(self, task: asyncio.Task[None]) -> None:
        self._connections.pop(task).close()  # does nothing if the pipe closed it, or another owner detached it
        if not task.cancelled() and task.exception() is not None:
            logger.error("connection failed", exc_info=task.exception())

    async def _connection(self, client: socket.socket) -> None:
        try:
            client.setblocking(False)
            if self._tls is not None:
                await self._tls_connection(client, self._tls)
                return
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = await asyncio.wait_for(self._first_bytes(client), self._limits.first_bytes_timeout_s)
            if first.startswith(HTTP2_PREFACE):
                backend = await self._connected_to_grpc("")
                await pipe(_taken_over(client), backend, first, self._limits.pipe)
            elif first:
                self._backends.serve_http(_taken_over(client), first, "")
        except TimeoutError:
            self._refusals.count(CONNECTION, SILENT)
        except OSError:
            pass  # the peer left: nobody is there to be told

    async def _first_bytes(self, client: socket.socket) -> bytes:
        """Enough bytes to tell the protocols apart; fewer if the peer stopped sending."""
        first = b""
        while len(first) < len(HTTP2_PREFACE) and HTTP2_PREFACE.startswith(first):
            data = await self._loop.sock_recv(client, CHUNK_BYTES)
            if not data:
                break
            first += data
        return first

    async def _tls_connection(self, client: socket.socket, tls: ServerTls) -> None:
        tls.reload_if_changed()
        tls.context.set_alpn_protocols(ALPN)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        name, is_http = "", False

        async def choose(peer: ssl.SSLObject) -> socket.socket:
            nonlocal name, is_http
            spiffe_id = spiffe_id_of(peer.getpeercert())
            if peer.selected_alpn_protocol() == "h2":
                self._named += 1
                name = f"c{self._named}"
                self._backends.ids[name] = spiffe_id
                return await self._connected_to_grpc(name)
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            self._backends.serve_http(theirs, b"", spiffe_id)
            self._http_in_tls += 1
            is_http = True
            return ours

        try:
            await tls_pipe(_taken_over(client), tls.context, choose, self._limits.pipe)
        except OSError:  # ssl.SSLError among them
            self._refusals.count(CONNECTION, HANDSHAKE)
        finally:
            self._backends.ids.pop(name, None)
            self._http_in_tls -= is_http

    async def _connected_to_grpc(self, name: str) -> socket.socket:
        """A connection to gRPC's own socket; with a name, gRPC tells its calls apart by it."""
        backend = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = self._backends.folder
        try:
            backend.setblocking(False)
            if name:
                backend.bind(str(folder / name))
            await self._loop.sock_connect(backend, str(folder / GRPC_SOCKET))
        except BaseException:
            backend.close()
            raise
        finally:
            if name:
                (folder / name).unlink(missing_ok=True)  # the connection keeps it as its name
        return backend


def _taken_over(client: socket.socket) -> socket.socket:
    """The same connection as a new object, so that closing the old one does nothing."""
    return socket.socket(fileno=client.detach())
