"""The gRPC front on grpcio: bytes in, bytes out, on a unix socket that only the splice talks to.

Rules: every call of the protocol that is not offered is UNIMPLEMENTED; messages and concurrent calls are bounded;
errors leave through `status.py`. This is one of the three doors where unknown errors are caught (the rpc edge).
Why generic handlers: the messages live in a private descriptor pool, so no generated service code is registered.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc

from holdfast import __version__
from holdfast.errors import DeadlineError, UnsupportedError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip, oip_pb2
from holdfast.serving.service import InferenceService
from holdfast.serving.status import status_of

logger = logging.getLogger(__name__)

SERVICE = "inference.GRPCInferenceService"
WORKERS = 8  # more than the cores: a call waits for the network, not only for the processor
CODE_KEY = "holdfast-code"  # trailing metadata: the stable code of the error

Method = Callable[[bytes], bytes]


class GrpcioFront:
    """A grpcio server over an InferenceService."""

    def __init__(self, service: InferenceService, *, max_message_bytes: int, max_concurrent_calls: int) -> None:
        self._service = service
        self._server = grpc.server(
            ThreadPoolExecutor(WORKERS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=max_concurrent_calls,
        )
        handlers = {name: _unary(method) for name, method in self._methods().items()}
        self._server.add_generic_rpc_handlers((_Calls(handlers),))

    def start(self, address: str) -> None:
        """Listen on `address`, a unix socket. Returns when calls are answered."""
        self._server.add_insecure_port(address)
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Take no new calls, give those running `grace_s`, then end them. Returns when all have ended."""
        self._server.stop(grace_s).wait(grace_s + 1.0)

    def _methods(self) -> dict[str, Callable[[bytes, grpc.ServicerContext], bytes]]:
        return {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._model_infer,
        }

    def _server_live(self, data: bytes, _context: grpc.ServicerContext) -> bytes:
        oip.parse(oip_pb2.ServerLiveRequest, data)
        return oip_pb2.ServerLiveResponse(live=True).SerializeToString()

    def _server_ready(self, data: bytes, _context: grpc.ServicerContext) -> bytes:
        oip.parse(oip_pb2.ServerReadyRequest, data)
        return oip_pb2.ServerReadyResponse(ready=self._service.is_ready).SerializeToString()

    def _model_ready(self, data: bytes, _context: grpc.ServicerContext) -> bytes:
        request = oip.parse(oip_pb2.ModelReadyRequest, data)
        ready = self._service.is_model_ready(request.name, request.version)
        return oip_pb2.ModelReadyResponse(ready=ready).SerializeToString()

    def _server_metadata(self, data: bytes, _context: grpc.ServicerContext) -> bytes:
        oip.parse(oip_pb2.ServerMetadataRequest, data)
        return oip.server_metadata(__version__)

    def _model_metadata(self, data: bytes, _context: grpc.ServicerContext) -> bytes:
        request = oip.parse(oip_pb2.ModelMetadataRequest, data)
        return oip.model_metadata(self._service.model(request.name, request.version))

    def _model_infer(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        def decode() -> TensorRequest:
            left_s = context.time_remaining()
            if left_s is not None and left_s <= 0:
                raise DeadlineError("the deadline passed before the request was started")
            return oip.decode_request(data)

        return oip.encode_response(self._service.infer(decode))


class _Calls(grpc.GenericRpcHandler):
    """Finds the handler of a call; the protocol's other calls are refused with a reason."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        service, _, method = str(handler_call_details.method).removeprefix("/").partition("/")
        if service != SERVICE:
            return None  # grpcio answers UNIMPLEMENTED
        return self._handlers.get(method) or _unary(_refuse)


def _refuse(_data: bytes, _context: grpc.ServicerContext) -> bytes:
    raise UnsupportedError("this call is not offered by this server")


def _unary(method: Callable[[bytes, grpc.ServicerContext], bytes]) -> grpc.RpcMethodHandler[bytes, bytes]:
    def edge(data: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return method(data, context)
        except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
            status = status_of(error)
        context.set_trailing_metadata(((CODE_KEY, status.code),))
        context.abort(grpc.StatusCode[status.grpc], status.text)

    return grpc.unary_unary_rpc_method_handler(edge)
