"""The HTTP/1.1 front: connections that the splice hands to it, answered by `routes.py`.

Rules: one thread a connection, bounded by the splice; a request that breaks the framing is answered once and the
connection closed; an error of one request never touches another connection.
"""

from __future__ import annotations

import socket
import threading

from holdfast.clock import Clock
from holdfast.serving.http1 import HttpError, HttpLimits, HttpRequest
from holdfast.serving.http_wire import ConnectionClosed, HttpReader
from holdfast.serving.oip_json import error_body
from holdfast.serving.refusals import Refusals
from holdfast.serving.routes import CLOSE, HttpResponse, Routes
from holdfast.serving.rpc import CallContext, Origin


class HttpFront:
    """Answers HTTP/1.1 on sockets it is handed. Thread-safe."""

    def __init__(self, routes: Routes, refusals: Refusals, clock: Clock, limits: HttpLimits, origin: Origin) -> None:
        self._routes = routes
        self._refusals = refusals
        self._origin = origin
        self._clock = clock
        self._limits = limits
        self._lock = threading.Lock()
        self._idle_or_busy: dict[socket.socket, bool] = {}  # open connections; True while a request is being answered
        self._threads: set[threading.Thread] = set()
        self._stopping = threading.Event()

    def serve(self, connection: socket.socket, first: bytes, spiffe_id: str = "") -> None:
        """Answer requests on a blocking socket, in a thread of its own, until it ends.

        Args:
            first: what was read already.
            spiffe_id: of the client's certificate, where one was verified.
        """
        connection.setblocking(True)
        thread = threading.Thread(target=self._run, args=(connection, first, spiffe_id), name="http", daemon=True)
        with self._lock:
            self._threads.add(thread)
            self._idle_or_busy[connection] = False
            thread.start()  # under the lock: `stop` waits for those it finds, and one waits only for what was started

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._idle_or_busy)

    def stop(self, grace_s: float) -> None:
        """Close idle connections, let busy ones finish within `grace_s`, then close them too."""
        self._stopping.set()
        deadline_s = self._clock.monotonic_s() + grace_s
        with self._lock:
            threads = list(self._threads)
            for connection, busy in self._idle_or_busy.items():
                if not busy:
                    _shut(connection)
        for thread in threads:
            thread.join(max(0.0, deadline_s - self._clock.monotonic_s()))
        with self._lock:
            for connection in self._idle_or_busy:
                _shut(connection)
        for thread in threads:
            thread.join(1.0)

    def _run(self, connection: socket.socket, first: bytes, spiffe_id: str) -> None:
        try:
            self._answer_all(connection, HttpReader(connection, first, self._clock, self._limits), spiffe_id)
        except (ConnectionClosed, OSError):
            pass  # the peer left, or was too slow: nobody is there to be told
        finally:
            with self._lock:
                self._idle_or_busy.pop(connection, None)
                self._threads.discard(threading.current_thread())
            _shut(connection)
            connection.close()

    def _answer_all(self, connection: socket.socket, reader: HttpReader, spiffe_id: str) -> None:
        while not self._stopping.is_set():
            try:
                request = reader.next_request()
            except HttpError as error:
                self._refusals.note(error)
                response = HttpResponse(error.status, error_body(str(error)))
                self._send(connection, response, keep_alive=False, head_only=False)
                reader.drain()  # else the kernel resets the connection and the peer may lose our answer
                return
            with self._lock:
                self._idle_or_busy[connection] = True
            response = self._answer(request, spiffe_id)
            keep_alive = request.keep_alive and not self._stopping.is_set()
            self._send(connection, response, keep_alive=keep_alive, head_only=request.method == "HEAD")
            with self._lock:
                self._idle_or_busy[connection] = False
            if not keep_alive:
                return

    def _answer(self, request: HttpRequest, spiffe_id: str) -> HttpResponse:
        context = CallContext(None, request.headers, "", self._origin.is_admin, self._origin.is_local, spiffe_id)
        return self._routes.answer(request.method, request.path, request.headers, request.body, context)

    def _send(self, connection: socket.socket, response: HttpResponse, *, keep_alive: bool, head_only: bool) -> None:
        head = (response.head(*(() if keep_alive else (CLOSE,))) + "\r\n\r\n").encode("latin-1")
        connection.settimeout(self._limits.body_timeout_s)
        connection.sendall(head if head_only else head + response.body)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed already
