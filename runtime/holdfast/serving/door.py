"""One listening socket with the grpcio and HTTP fronts behind it, started and stopped as one thing.

Rules: a door knows where its callers come from (`Origin`), and nothing of what they ask for; `stop` lets running
requests end within its time, then closes what is left.
"""

from __future__ import annotations

import shutil
import socket
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

from holdfast.clock import Clock
from holdfast.serving.grpcio_front import GrpcioFront
from holdfast.serving.http1 import HttpLimits
from holdfast.serving.http2.limits import PingRules
from holdfast.serving.http_front import HttpFront
from holdfast.serving.native.front import Calls
from holdfast.serving.native.tls import ServerTls
from holdfast.serving.rpc import Origin
from holdfast.serving.splice import GRPC_SOCKET, Backends, Splice, SpliceLimits


@dataclass(frozen=True, slots=True)
class DoorLimits:
    """Bounds of one door."""

    max_message_bytes: int
    max_connections: int
    max_in_flight: int
    pings: PingRules


class GrpcioDoor:
    """A door whose gRPC side is grpcio."""

    def __init__(
        self, calls: Calls, clock: Clock, limits: DoorLimits, origin: Origin, tls: ServerTls | None = None
    ) -> None:
        self._limits = limits
        self._refusals = calls.service.refusals
        self._tls = tls
        self._ids: dict[str, str] = {}
        self._grpc = GrpcioFront(
            calls.rpc,
            clock,
            origin,
            self._ids,
            max_message_bytes=limits.max_message_bytes,
            max_concurrent_calls=limits.max_in_flight,
            pings=limits.pings,
        )
        self._http = HttpFront(
            calls.routes, self._refusals, clock, HttpLimits(max_body_bytes=limits.max_message_bytes), origin
        )
        self._folder: Path | None = None
        self._splice: Splice | None = None

    def start(self, listener: socket.socket) -> None:
        """Answer what comes in at `listener`, which is ours from here on. Returns when requests are answered."""
        self._folder = Path(tempfile.mkdtemp(prefix="holdfast-"))  # 0700: nobody else reaches the backend
        self._grpc.start(f"unix:{self._folder / GRPC_SOCKET}")
        backends = Backends(self._folder, self._http.serve, lambda: self._http.open_connections, self._ids)
        limits = SpliceLimits(max_connections=self._limits.max_connections)
        self._splice = Splice(listener, backends, self._refusals, limits, self._tls)
        self._splice.start()

    def stop_accepting(self) -> None:
        """Close the listener; connections that are open go on."""
        if self._splice is not None:
            self._splice.stop_accepting()

    def stop(self, deadline_s: float) -> None:
        """Let running requests end within `deadline_s`, then close what is left. Does nothing if not started."""
        if self._splice is None or self._folder is None:
            return
        grpc_stop = threading.Thread(target=self._grpc.stop, args=(deadline_s,), name="grpc-stop")
        grpc_stop.start()
        self._http.stop(deadline_s)
        grpc_stop.join()
        self._splice.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._splice = self._folder = None
