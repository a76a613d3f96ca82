"""The server: one public port, gRPC and HTTP behind it, started and stopped as one thing.

Rules: `start` returns when requests are answered; `stop` says "not ready", closes the port, lets running requests end,
then closes what is left. Off loopback it refuses to start unless told that an open, unencrypted port is meant.
"""

from __future__ import annotations

import errno
import ipaddress
import shutil
import socket
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from holdfast.clock import Clock, SystemClock
from holdfast.errors import UsageError
from holdfast.inference.pool import ModelPool
from holdfast.serving.grpcio_front import GrpcioFront
from holdfast.serving.http_front import HttpFront
from holdfast.serving.http1 import HttpLimits
from holdfast.serving.protocols import RequestTap
from holdfast.serving.rpc import RpcTable
from holdfast.serving.service import MAX_IN_FLIGHT, InferenceService
from holdfast.serving.splice import Splice, SpliceLimits

DEFAULT_PORT = 8080
MAX_MESSAGE_BYTES = 64 * 1024**2  # 64 MiB: a batch of 100 images of 224 x 224 in float32, uncompressed
STOP_DEADLINE_S = 10.0
BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Address:
        """HOST:PORT; an IPv6 address in brackets.

        Raises:
            UsageError: not of that form.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if not colon or not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
            raise UsageError(f"expected HOST:PORT, like 127.0.0.1:{DEFAULT_PORT}, got {text!r}")
        return cls(host, int(port))


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where to listen, and how much to take. Port 0 = one that is free."""

    listen: Address = Address("127.0.0.1", DEFAULT_PORT)
    insecure: bool = False
    max_message_bytes: int = MAX_MESSAGE_BYTES
    max_connections: int = 512
    max_in_flight: int = MAX_IN_FLIGHT


class Server:
    """Serves the models of a pool over the Open Inference Protocol."""

    def __init__(
        self,
        pool: ModelPool,
        taps: Sequence[RequestTap] = (),
        options: ServerOptions | None = None,
        clock: Clock | None = None,
    ) -> None:
        options = options or ServerOptions()
        clock = clock or SystemClock()
        self._options = options
        self._service = InferenceService(pool, taps, clock, max_in_flight=options.max_in_flight)
        self._grpc = GrpcioFront(
            RpcTable(self._service, clock),
            clock,
            max_message_bytes=options.max_message_bytes,
            max_concurrent_calls=options.max_in_flight,
        )
        self._http = HttpFront(self._service, clock, HttpLimits(max_body_bytes=options.max_message_bytes))
        self._folder: Path | None = None
        self._splice: Splice | None = None

    def start(self) -> Address:
        """Listen. Returns the address once requests to it are answered.

        Raises:
            UsageError: the port is in use or not ours to take, or an open port off loopback was not asked for.
        """
        listener = _listen(self._options.listen, insecure=self._options.insecure)
        host, port = listener.getsockname()[:2]
        self._folder = Path(tempfile.mkdtemp(prefix="holdfast-"))  # 0700: nobody else reaches the backend
        backend = str(self._folder / "grpc")
        self._grpc.start(f"unix:{backend}")
        limits = SpliceLimits(max_connections=self._options.max_connections)
        self._splice = Splice(listener, backend, self._http.serve, lambda: self._http.open_connections, limits)
        self._splice.start()
        return Address(str(host), int(port))

    def stop(self, deadline_s: float = STOP_DEADLINE_S) -> None:
        """Drain within `deadline_s`, then end what is left. Does nothing if not started."""
        if self._splice is None or self._folder is None:
            return
        self._service.drain()
        self._splice.stop_accepting()
        grpc_stop = threading.Thread(target=self._grpc.stop, args=(deadline_s,), name="grpc-stop")
        grpc_stop.start()
        self._http.stop(deadline_s)
        grpc_stop.join()
        self._splice.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._splice = self._folder = None


def _listen(address: Address, *, insecure: bool) -> socket.socket:
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (socket.gaierror, UnicodeError) as error:
        raise UsageError(f"cannot listen on {address}: unknown host name") from error
    if not ipaddress.ip_address(str(where[0]).split("%")[0]).is_loopback and not insecure:
        raise UsageError(
            f"{address} can be reached from other machines, and this port has neither encryption nor access control; "
            "listen on 127.0.0.1, or add --insecure if the network itself is trusted"
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            advice = f"stop it, or choose another with --listen {address.host}:PORT (0 = any free one)"
            raise UsageError(f"port {address.port} on {address.host} is in use by another program; {advice}") from error
        raise UsageError(f"cannot listen on {address}: {error.strerror}") from error
    return listener
