"""A web application on a socket that we opened: the page on TCP, the operator's API on a unix socket of mode 0600.

Why not let uvicorn open the unix socket: it gives it mode 0666.
"""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from holdfast.clock import Clock
from holdfast.errors import SettingsError, StateError
from holdfast_federation.admin.client import short_socket_path
from holdfast_federation.server.settings import split_address

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
BACKLOG = 64
MAX_CONCURRENT_REQUESTS = 64  # then 503


class WebServer:
    """Serves one application in a thread of its own until `stop`."""

    def __init__(self, name: str, app: Starlette, listening: socket.socket, clock: Clock) -> None:
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=MAX_CONCURRENT_REQUESTS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=2,
        )
        self._name = name
        self._clock = clock
        self._socket = listening
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name=name, daemon=True
        )

    def start(self) -> None:
        """Return when requests are answered.

        Raises:
            StateError: it does not come up in time.
        """
        self._thread.start()
        never = threading.Event()
        deadline_s = self._clock.monotonic_s() + START_TIMEOUT_S
        while not self._server.started:
            if not self._thread.is_alive() or self._clock.monotonic_s() > deadline_s:
                raise StateError(f"the {self._name} did not start; the log says why")
            self._clock.wait(never, 0.01)

    def stop(self) -> None:
        """End open requests, a few seconds at most, and close the socket."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        self._socket.close()


def listen_tcp(address: str, name: str) -> socket.socket:
    """A listening TCP socket on host:port.

    Raises:
        SettingsError: the address is malformed or cannot be listened on.
    """
    host, port = split_address(address, name)
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise SettingsError(f"cannot listen on {address} ({name}): {error.strerror}") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise SettingsError(f"cannot listen on {address} ({name}): {error.strerror}; choose another port") from error
    return listening


def listen_unix(path: Path) -> socket.socket:
    """A listening unix socket that only its owner can open.

    Raises:
        StateError: it cannot be made.
    """
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_socket_path(path) as name:
            listening.bind(name)
        # nobody can connect between bind and listen, so there is no moment with a wider mode
        os.chmod(path, 0o600)
        listening.listen(BACKLOG)
    except OSError as error:
        listening.close()
        raise StateError(f"cannot make the socket {path}: {error.strerror}") from error
    return listening
