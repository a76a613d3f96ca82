"""The one table of gRPC calls: what a path means, for every front. No sockets, no framing.

Rules: a handler takes the bytes of a message and a CallContext and returns bytes or raises; errors leave through
`status.py`, at the front's door. A call of the protocol that is not offered is refused with a reason, one that nobody
knows is not in the table. `is_slow` calls may wait (for a disk, for a child process): never on a loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from holdfast import __version__
from holdfast.clock import Clock
from holdfast.errors import DeadlineError, UnsupportedError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.service import InferenceService

SERVICE = "/inference.GRPCInferenceService/"
MODEL_INFER = SERVICE + "ModelInfer"


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a front knows of one call. `deadline_s` is on the monotonic clock; metadata keys are lower case."""

    deadline_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    is_admin: bool = False


Unary = Callable[[bytes, CallContext], bytes]
Send = Callable[[bytes], None]
Watch = Callable[[bytes, CallContext, Send], Callable[[], None]]


@dataclass(frozen=True, slots=True)
class UnaryCall:
    """One message in, one out."""

    answer: Unary
    is_slow: bool = False


@dataclass(frozen=True, slots=True)
class StreamCall:
    """Messages in, and for each exactly one out, in order. `answer` turns errors of one message into its answer."""

    answer: Unary


@dataclass(frozen=True, slots=True)
class WatchCall:
    """One message in, many out: `watch(data, context, send)` calls `send` from any thread and returns how to end."""

    watch: Watch


Call = UnaryCall | StreamCall | WatchCall


class RpcTable:
    """The calls of a server, by path ("/package.Service/Method"). Thread-safe, never changes."""

    def __init__(self, service: InferenceService, clock: Clock) -> None:
        self._service = service
        self._clock = clock
        self._calls: dict[str, Call] = {
            MODEL_INFER: UnaryCall(self._model_infer),
            SERVICE + "ServerLive": UnaryCall(self._server_live),
            SERVICE + "ServerReady": UnaryCall(self._server_ready),
            SERVICE + "ModelReady": UnaryCall(self._model_ready),
            SERVICE + "ServerMetadata": UnaryCall(self._server_metadata),
            SERVICE + "ModelMetadata": UnaryCall(self._model_metadata),
        }

    def find(self, path: str) -> Call | None:
        """The call at `path`; None if neither we nor the protocol know it (a front answers UNIMPLEMENTED)."""
        return self._calls.get(path) or (UnaryCall(_refuse) if path.startswith(SERVICE) else None)

    def decode_infer(self, data: bytes, context: CallContext) -> TensorRequest:
        """The request of a ModelInfer call, for a front that schedules by itself.

        Raises:
            DeadlineError: it came too late.
            RequestError: what is wrong with it.
        """
        if context.deadline_s is not None and context.deadline_s <= self._clock.monotonic_s():
            raise DeadlineError("the deadline passed before the request was started")
        return oip.decode_request(data)

    def _model_infer(self, data: bytes, context: CallContext) -> bytes:
        return oip.encode_response(self._service.infer(lambda: self.decode_infer(data, context)))

    def _server_live(self, data: bytes, _context: CallContext) -> bytes:
        oip.parse(oip_pb2.ServerLiveRequest, data)
        return oip_pb2.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, data: bytes, _context: CallContext) -> bytes:
        oip.parse(oip_pb2.ServerReadyRequest, data)
        return oip_pb2.ServerReadyResponse(ready=self._service.is_ready).SerializeToString()

    def _model_ready(self, data: bytes, _context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.ModelReadyRequest, data)
        ready = self._service.is_model_ready(request.name, request.version)
        return oip_pb2.ModelReadyResponse(ready=ready).SerializeToString()

    def _server_metadata(self, data: bytes, _context: CallContext) -> bytes:
        oip.parse(oip_pb2.ServerMetadataRequest, data)
        return oip.server_metadata(__version__)

    def _model_metadata(self, data: bytes, _context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.ModelMetadataRequest, data)
        return oip.model_metadata(self._service.model(request.name, request.version))


def _refuse(_data: bytes, _context: CallContext) -> bytes:
    raise UnsupportedError("this call is not offered by this server")
