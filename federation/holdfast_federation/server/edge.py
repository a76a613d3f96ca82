"""The rpc door: bytes in, bytes out; every error becomes a status by the one table, and nothing else gets out.

Handlers get raw bytes, so that a bound is checked before parsing and a malformed message is a clear INVALID_ARGUMENT.
This is one of the three places where unknown errors are caught.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import grpc

from holdfast_federation.status import status_of

Method = Callable[[bytes, grpc.ServicerContext], bytes]

CODE_METADATA = "holdfast-code"  # the stable error code, in the trailing metadata of a refused call


def service(name: str, methods: Mapping[str, Method]) -> grpc.GenericRpcHandler:
    """A gRPC service of unary methods, for example `holdfast.wire.v1.FleetService`."""
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        method: grpc.unary_unary_rpc_method_handler(_guarded(call)) for method, call in methods.items()
    }
    return grpc.method_handlers_generic_handler(name, handlers)


def _guarded(call: Method) -> Method:
    def guarded(request: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return call(request, context)
        except Exception as error:  # noqa: BLE001  # the rpc door; status_of logs what is not ours
            status = status_of(error)
        context.set_trailing_metadata(((CODE_METADATA, status.code),))
        context.abort(grpc.StatusCode[status.grpc], f"{status.code}: {status.text}")
        raise AssertionError("abort always raises")

    return guarded
