"""What peers were refused before it was a request: connections, frames, heads, messages that break a protocol's rules.

Rules: counted by layer and reason, both words of ours and few, so that no peer can make us remember more; the log names
them too, with how often, once in LOG_S for each, and never what the peer sent. Requests that were understood and
refused are no business of this file: they are in `statistics.py`, under their model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.serving.grpc_wire import GrpcFault
from holdfast.serving.http1 import HttpError
from holdfast.serving.http2.errors import Http2Fault

logger = logging.getLogger(__name__)

CONNECTION, HTTP, HTTP2, GRPC = "connection", "http", "http2", "grpc"  # layers
TOO_MANY, HANDSHAKE, SILENT, UNTAKEN = "too_many", "handshake", "silent", "untaken"  # reasons of connections
LOG_S = 10.0  # between two lines of the same reason: a flood of bad frames must not be one of lines

Key = tuple[str, str]


@dataclass(slots=True)
class _Count:
    total: int = 0
    logged: int = 0
    logged_s: float = float("-inf")


class Refusals:
    """Counters by (layer, reason). Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._counts: dict[Key, _Count] = {}

    def note(self, fault: BaseException) -> None:
        """Count a broken rule of HTTP/1.1, HTTP/2 or gRPC; any other error is left to whoever else counts it."""
        if isinstance(fault, HttpError):
            self.count(HTTP, str(fault.status))
        elif isinstance(fault, Http2Fault):
            self.count(HTTP2, fault.code.name)
        elif isinstance(fault, GrpcFault):
            self.count(GRPC, fault.status)

    def count(self, layer: str, reason: str) -> None:
        """One more. Both words are ours: a status, an error code, one of the reasons above."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            count = self._counts.setdefault((layer, reason), _Count())
            count.total += 1
            if now_s - count.logged_s < LOG_S:
                return
            times, count.logged, count.logged_s = count.total - count.logged, count.total, now_s
        logger.info("peer refused", extra={"layer": layer, "reason": reason, "times": times})

    def counts(self) -> Mapping[Key, int]:
        """A copy of all counters by layer and reason."""
        with self._lock:
            return {key: count.total for key, count in self._counts.items()}
