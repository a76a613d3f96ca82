"""What every connection of the native front shares: the calls, the queue to the scheduler, and the bounds."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass, field

from holdfast.clock import Clock
from holdfast.serving.http1 import HttpLimits
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.native.budget import Budget, Gate
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.native.http_codec import HttpCodec
from holdfast.serving.native.lane import Lane
from holdfast.serving.native.tick import Tick
from holdfast.serving.routes import Routes
from holdfast.serving.rpc import RpcTable
from holdfast.serving.service import InferenceService


@dataclass(frozen=True, slots=True)
class NativeOptions:
    """Bounds of the front. `memoise` only saves work; `large_bytes` is for all messages above a stream's window."""

    max_message_bytes: int = 64 * 1024**2
    max_connections: int = 512
    max_in_flight: int = 1_024
    max_long_calls: int = 64  # streams and watches open at once
    large_bytes: int = 256 * 1024**2
    http2: Http2Limits = field(default_factory=Http2Limits)
    http1: HttpLimits = field(default_factory=HttpLimits)
    first_bytes_timeout_s: float = 10.0
    frame_timeout_s: float = 10.0  # for the rest of a frame or header block
    body_timeout_s: float = 60.0  # for the rest of a request
    stalled_timeout_s: float = 60.0  # for a peer that takes nothing of its answers
    idle_timeout_s: float = 600.0  # between HTTP/2 requests
    memoise: bool = True
    untaken_bytes: int = 256 * 1024**2  # answers that clients of all connections together do not take


@dataclass(frozen=True, slots=True)
class PeerFacts:
    """What is known of a peer before it says anything."""

    peer: str = ""
    is_admin: bool = False
    is_local: bool = True
    spiffe_id: str = ""


@dataclass(frozen=True, slots=True)
class Backend:
    """Handed to every connection."""

    rpc: RpcTable
    routes: Routes
    service: InferenceService
    clock: Clock
    tick: Tick
    budget: Budget
    executor: Executor
    options: NativeOptions
    in_flight: Gate
    long_calls: Gate
    codec: InferCodec
    lane: Lane
    http_codec: HttpCodec
