"""The public port: the first bytes of a connection decide whether it is gRPC or HTTP/1.1.

Rules: an HTTP/2 preface is piped to the gRPC backend's unix socket, anything else is handed to the HTTP front with what
was read; connections are bounded, and one that is silent, stalled or broken is closed without touching another.
Runs on a thread of its own; no model, disk or lock is waited for there.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from holdfast.serving.pipe import PipeLimits, pipe
from holdfast.serving.refusals import CONNECTION, SILENT, TOO_MANY, Refusals

logger = logging.getLogger(__name__)

HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 3.4
CHUNK_BYTES = 65_536
ACCEPT_PAUSE_S = 0.1  # after the system refused us a connection (out of file descriptors): let some end


@dataclass(frozen=True, slots=True)
class SpliceLimits:
    """Bounds of the public port."""

    max_connections: int = 512
    first_bytes_timeout_s: float = 10.0
    pipe: PipeLimits = field(default_factory=PipeLimits)


class Splice:
    """Accepts connections and passes each to its front."""

    def __init__(
        self,
        listener: socket.socket,
        grpc_socket: str,
        serve_http: Callable[[socket.socket, bytes], None],
        count_http: Callable[[], int],
        refusals: Refusals,
        limits: SpliceLimits,
    ) -> None:
        self._listener = listener
        self._grpc_socket = grpc_socket
        self._serve_http = serve_http
        self._count_http = count_http
        self._refusals = refusals
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
        if len(self._connections) + self._count_http() >= self._limits.max_connections:
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
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            first = await asyncio.wait_for(self._first_bytes(client), self._limits.first_bytes_timeout_s)
            if first.startswith(HTTP2_PREFACE):
                await self._pipe_to_grpc(_taken_over(client), first)
            elif first:
                self._serve_http(_taken_over(client), first)
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

    async def _pipe_to_grpc(self, client: socket.socket, first: bytes) -> None:
        backend = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            backend.setblocking(False)
            await self._loop.sock_connect(backend, self._grpc_socket)
        except BaseException:
            backend.close()
            raise
        await pipe(client, backend, first, self._limits.pipe)


def _taken_over(client: socket.socket) -> socket.socket:
    """The same connection as a new object, so that closing the old one does nothing."""
    return socket.socket(fileno=client.detach())
