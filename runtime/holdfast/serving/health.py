"""The standard health service of gRPC: Check and Watch, for the server as a whole and for each service it offers.

Rules: SERVING until the server drains, NOT_SERVING from then on; a service that is not ours is NOT_FOUND for Check and
SERVICE_UNKNOWN for Watch. Source: grpc/doc/health-checking.md.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

from holdfast.errors import UnknownModelError
from holdfast.serving import health_pb2
from holdfast.serving.oip import parse
from holdfast.serving.service import InferenceService

Response = health_pb2.HealthCheckResponse


class Health:
    """Answers health calls. Thread-safe."""

    def __init__(self, service: InferenceService, services: Collection[str]) -> None:
        self._service = service
        self._services = frozenset(services) | {""}

    def check(self, data: bytes) -> bytes:
        """The bytes of a HealthCheckResponse.

        Raises:
            UnknownModelError: the service is not ours; its status is NOT_FOUND, as the protocol wants it.
        """
        name = parse(health_pb2.HealthCheckRequest, data).service
        if name not in self._services:
            raise UnknownModelError("unknown service")
        return self._status()

    def watch(self, data: bytes, send: Callable[[bytes], None]) -> Callable[[], None]:
        """Send the status now and whenever it changes. Returns how to end that."""
        name = parse(health_pb2.HealthCheckRequest, data).service
        if name not in self._services:
            send(Response(status=Response.SERVICE_UNKNOWN).SerializeToString())
            return lambda: None
        end = self._service.watch(lambda: send(self._status()))
        send(self._status())
        return end

    def _status(self) -> bytes:
        status = Response.SERVING if self._service.is_ready else Response.NOT_SERVING
        return Response(status=status).SerializeToString()
