"""The one table of gRPC calls: what a path means, for every front. No sockets, no framing.

Rules: a handler takes the bytes of a message and a CallContext and returns bytes or raises; errors leave through
`status.py`, at the front's door. A call of the protocol that is not offered is refused with a reason, one that nobody
knows is not in the table. `is_slow` calls may wait (for a disk, for a child process): never on a loop's thread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from google.protobuf.message import Message

from holdfast.clock import Clock
from holdfast.errors import DeadlineError, HoldfastError, UnsupportedError
from holdfast.inference.tensors import TensorResponse
from holdfast.serving import oip, oip_pb2
from holdfast.serving.authorisation import Action, Caller, bearer_token
from holdfast.serving.control import Control
from holdfast.serving.descriptions import Value
from holdfast.serving.health import Health
from holdfast.serving.parameters import InferCall
from holdfast.serving.protocols import OnLeave
from holdfast.serving.service import InferenceService
from holdfast.serving.shared_memory import SharedMemory
from holdfast.serving.status import status_of

SERVICE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"
REFLECTION_V1 = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
REFLECTION_V1ALPHA = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
MODEL_INFER = SERVICE + "ModelInfer"
_CUDA = "CUDA shared memory (models run on the CPU)"
NOT_OFFERED = {
    "CudaSharedMemoryStatus": _CUDA,
    "CudaSharedMemoryRegister": _CUDA,
    "TraceSetting": "a trace setting (trace headers are passed through, nothing is recorded)",
    "LogSettings": "a log setting (the operator's own, at start)",
}  # calls of the protocol, with what stands before "is not offered by this server"


@dataclass(frozen=True, slots=True)
class CallContext:
    """What a front knows of one call. `deadline_s` is on the monotonic clock; metadata keys are lower case."""

    deadline_s: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    is_admin: bool = False  # it came over the admin socket
    is_local: bool = False  # it came over loopback or a unix socket
    spiffe_id: str = ""  # of a client certificate that was verified
    on_leave: OnLeave | None = None  # of a front whose threads wait for answers


@dataclass(frozen=True, slots=True)
class Origin:
    """What a listener knows of everybody who comes in there."""

    is_admin: bool = False
    is_local: bool = True


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

    def __init__(self, control: Control, service: InferenceService, clock: Clock) -> None:
        self._control = control
        self._service = service
        self._clock = clock
        health = Health(service, (SERVICE.strip("/"), HEALTH.strip("/")))
        self._calls: dict[str, Call] = {
            MODEL_INFER: UnaryCall(self._model_infer),
            SERVICE + "ModelStreamInfer": StreamCall(self._stream_infer),
            SERVICE + "ServerLive": UnaryCall(self._server_live),
            SERVICE + "ServerReady": UnaryCall(self._server_ready),
            SERVICE + "ModelReady": UnaryCall(self._model_ready),
            HEALTH + "Check": UnaryCall(lambda data, _context: health.check(data)),
            HEALTH + "Watch": WatchCall(lambda data, _context, send: health.watch(data, send)),
            REFLECTION_V1: StreamCall(self._reading(_reflect_v1)),
            REFLECTION_V1ALPHA: StreamCall(self._reading(_reflect_v1alpha)),
            SERVICE + "ServerMetadata": UnaryCall(self._reading(self._server_metadata)),
            SERVICE + "ModelMetadata": UnaryCall(self._reading(self._model_metadata)),
            SERVICE + "ModelConfig": UnaryCall(self._reading(self._model_config)),
            SERVICE + "ModelStatistics": UnaryCall(self._reading(self._model_statistics)),
            SERVICE + "RepositoryIndex": UnaryCall(self._reading(self._repository_index)),
            SERVICE + "RepositoryModelLoad": UnaryCall(self._load, is_slow=True),
            SERVICE + "RepositoryModelUnload": UnaryCall(self._unload, is_slow=True),
            SERVICE + "SystemSharedMemoryStatus": UnaryCall(self._region_status),
            SERVICE + "SystemSharedMemoryRegister": UnaryCall(self._register_region),
            SERVICE + "SystemSharedMemoryUnregister": UnaryCall(self._unregister_region),
            SERVICE + "CudaSharedMemoryUnregister": UnaryCall(self._reading(_unregister_cuda)),
        }
        self._calls |= {SERVICE + name: UnaryCall(_refusal(reason)) for name, reason in NOT_OFFERED.items()}

    def find(self, path: str) -> Call | None:
        """The call at `path`; None if neither we nor the protocol know it (a front answers UNIMPLEMENTED)."""
        return self._calls.get(path) or (UnaryCall(_refusal("this call")) if path.startswith(SERVICE) else None)

    def may_infer(self, context: CallContext) -> bool:
        """Whether the caller may infer; if not, `decode_infer` says why."""
        try:
            self._control.check(caller_of(context), Action.INFER)
        except HoldfastError:
            return False
        return True

    def decode_infer(self, data: bytes, context: CallContext) -> InferCall:
        """The request of a ModelInfer call, for a front that schedules by itself.

        Raises:
            DeadlineError: it came too late.
            AccessError: the caller may not infer.
            RequestError: what is wrong with it.
        """
        if context.deadline_s is not None and context.deadline_s <= self._clock.monotonic_s():
            raise DeadlineError("the deadline passed before the request was started")
        if self._control.is_guarded:
            self._control.check(caller_of(context), Action.INFER)
        regions = self.regions_for(is_local=context.is_local, is_admin=context.is_admin)
        return oip.decode_infer(data, regions)

    def encode_infer(self, call: InferCall, response: TensorResponse) -> bytes:
        """The answer to a ModelInfer call.

        Raises:
            RequestError: an output cannot go out as it was asked for.
        """
        return oip.encode_response(response, call.form, self._control.regions())

    def _model_infer(self, data: bytes, context: CallContext) -> bytes:
        decode = partial(self.decode_infer, data, context)
        return self.encode_infer(*self._service.infer(decode, context.deadline_s, context.on_leave))

    def _stream_infer(self, data: bytes, context: CallContext) -> bytes:
        request_id = ""

        def decode() -> InferCall:
            nonlocal request_id
            call = self.decode_infer(data, context)
            request_id = call.request.request_id
            return call

        try:
            call, response = self._service.infer(decode, context.deadline_s, context.on_leave)
            return oip.encode_stream_response(response, call.form, self._control.regions())
        except HoldfastError as error:
            return oip.encode_stream_error(status_of(error).text, request_id)

    def regions_for(self, *, is_local: bool, is_admin: bool) -> SharedMemory | None:
        """The shared memory that a caller who may infer may use; None if there is none for it."""
        return self._control.regions() if is_admin or is_local else None

    def _reading(self, answer: Callable[[bytes], bytes]) -> Unary:
        def guarded(data: bytes, context: CallContext) -> bytes:
            self._control.check(caller_of(context), Action.READ)
            return answer(data)

        return guarded

    def _server_live(self, data: bytes, _context: CallContext) -> bytes:
        oip.parse(oip_pb2.ServerLiveRequest, data)
        return oip_pb2.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, data: bytes, _context: CallContext) -> bytes:
        oip.parse(oip_pb2.ServerReadyRequest, data)
        return oip_pb2.ServerReadyResponse(ready=self._service.is_ready).SerializeToString()

    def _model_ready(self, data: bytes, context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.ModelReadyRequest, data)
        self._control.check(caller_of(context), Action.READ)
        ready = self._service.is_model_ready(request.name, request.version)
        return oip_pb2.ModelReadyResponse(ready=ready).SerializeToString()

    def _server_metadata(self, data: bytes) -> bytes:
        oip.parse(oip_pb2.ServerMetadataRequest, data)
        return _message(oip_pb2.ServerMetadataResponse(), self._control.server_metadata())

    def _model_metadata(self, data: bytes) -> bytes:
        request = oip.parse(oip_pb2.ModelMetadataRequest, data)
        return _message(oip_pb2.ModelMetadataResponse(), self._control.model_metadata(request.name, request.version))

    def _model_config(self, data: bytes) -> bytes:
        request = oip.parse(oip_pb2.ModelConfigRequest, data)
        config = self._control.model_config(request.name, request.version)
        return _message(oip_pb2.ModelConfigResponse(), {"config": config})

    def _model_statistics(self, data: bytes) -> bytes:
        request = oip.parse(oip_pb2.ModelStatisticsRequest, data)
        return _message(oip_pb2.ModelStatisticsResponse(), self._control.statistics(request.name, request.version))

    def _repository_index(self, data: bytes) -> bytes:
        request = oip.parse(oip_pb2.RepositoryIndexRequest, data)
        index = self._control.repository_index(ready_only=request.ready)
        return _message(oip_pb2.RepositoryIndexResponse(), {"models": index})

    def _load(self, data: bytes, context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.RepositoryModelLoadRequest, data)
        self._control.load(request.model_name, request.parameters, caller_of(context))
        return oip_pb2.RepositoryModelLoadResponse().SerializeToString()

    def _unload(self, data: bytes, context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.RepositoryModelUnloadRequest, data)
        self._control.unload(request.model_name, request.parameters, caller_of(context))
        return oip_pb2.RepositoryModelUnloadResponse().SerializeToString()

    def _region_status(self, data: bytes, context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.SystemSharedMemoryStatusRequest, data)
        regions = self._control.region_status(request.name, caller_of(context))
        return _message(oip_pb2.SystemSharedMemoryStatusResponse(), {"regions": regions})

    def _register_region(self, data: bytes, context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.SystemSharedMemoryRegisterRequest, data)
        fields = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
        self._control.register_region(request.name, fields, caller_of(context))
        return oip_pb2.SystemSharedMemoryRegisterResponse().SerializeToString()

    def _unregister_region(self, data: bytes, context: CallContext) -> bytes:
        request = oip.parse(oip_pb2.SystemSharedMemoryUnregisterRequest, data)
        self._control.unregister_region(request.name, caller_of(context))
        return oip_pb2.SystemSharedMemoryUnregisterResponse().SerializeToString()


def caller_of(context: CallContext) -> Caller:
    """Who calls, as far as it is known."""
    token = bearer_token(context.metadata.get("authorization", ""))
    return Caller(context.is_admin, context.is_local, context.spiffe_id, token)


def _message(message: Message, value: Value) -> bytes:
    # not at the top: it brings half a megabyte of parsers, and only control calls need it
    from google.protobuf.json_format import ParseDict

    return ParseDict(value, message).SerializeToString()


def _reflect_v1(data: bytes) -> bytes:
    from holdfast.serving.reflection import own_reflection  # few servers are ever asked: loaded at the first question

    return own_reflection().answer_v1(data)


def _reflect_v1alpha(data: bytes) -> bytes:
    from holdfast.serving.reflection import own_reflection

    return own_reflection().answer_v1alpha(data)


def _unregister_cuda(data: bytes) -> bytes:
    """All of none: no such region was ever registered. Triton's clients begin with this (decision 0015)."""
    if data:  # it names a region
        raise UnsupportedError(f"{_CUDA} is not offered by this server")
    return b""


def _refusal(what: str) -> Unary:
    def refuse(_data: bytes, _context: CallContext) -> bytes:
        raise UnsupportedError(f"{what} is not offered by this server")

    return refuse
