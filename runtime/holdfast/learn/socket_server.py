"""A bounded HTTP server on a unix socket of mode 0600 that answers one process only."""

from __future__ import annotations

import logging
import os
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from holdfast.wire.limits import MAX_FLEET_BODY_BYTES

logger = logging.getLogger(__name__)

MAX_CONNECTIONS = 8  # one worker with two threads; more are refused
TIMEOUT_S = 90.0  # a peer that stops in the middle of a request
_UCRED = struct.Struct("3i")  # pid, uid, gid (unix(7), SO_PEERCRED)


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


Handle = Callable[[str, Mapping[str, str], bytes], Answer]


class SocketServer:
    """Serves `handle(path, headers, body)` for POST requests. Header names are lower case."""

    def __init__(self, path: Path, handle: Handle) -> None:
        self._server = _Server(path, handle)
        os.chmod(path, 0o600)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="worker-socket", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def allow(self, pid: int) -> None:
        """Answer this process from now on, and no other."""
        self._server.allowed_pid = pid

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(TIMEOUT_S)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, path: Path, handle: Handle) -> None:
        self.handle_post = handle
        self.allowed_pid = 0
        self.slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(str(path), _Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        del client_address
        if not isinstance(request, socket.socket):
            return False
        pid, _, _ = _UCRED.unpack(request.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
        if pid != self.allowed_pid:
            logger.warning("a process that is not the worker tried its socket", extra={"pid": pid})
        return bool(pid == self.allowed_pid)

    def handle_error(self, request: object, client_address: object) -> None:
        del request, client_address
        logger.debug("a connection of the worker broke off", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "holdfast"
    sys_version = ""

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, _Server)
        length = self.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > MAX_FLEET_BODY_BYTES:
            self.send_error(413)
            return
        if not server.slots.acquire(blocking=False):
            self.send_error(429)
            return
        try:
            body = self.rfile.read(int(length))
            answer = server.handle_post(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        finally:
            server.slots.release()
        self.send_response_only(answer.status)  # adds no date: the worker sets its clock by the SuperLink's
        for name, value in answer.headers.items():
            if name.lower() not in ("content-length", "connection"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: paths and sizes of the worker's calls are not for the log."""
