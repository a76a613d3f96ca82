"""The gRPC edge of enrolment: bounds and rate before anything is computed, then `Enrolment` decides.

This listener authenticates only the server, so whoever can reach it may call. What that can cost is bounded: message
size, calls at a time, and calls per second over all callers.
"""

from __future__ import annotations

import threading

import grpc
from google.protobuf.message import DecodeError

from holdfast.clock import Clock
from holdfast.errors import FormatError, OverloadedError
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import EnrolRequest, RenewRequest
from holdfast.wire.v1 import enrolment_pb2
from holdfast_federation.enrolment.enrol import Enrolment
from holdfast_federation.server.edge import service

SERVICE = "holdfast.wire.v1.EnrolmentService"
MAX_ENROLMENT_BYTES = 32_768  # 32 KiB: a request has about 2 KiB
CALLS_PER_S = 100.0  # 10,000 devices renewing twice a day make less than one
BURST_CALLS = 400  # a rack that boots at once, four calls a device


class RateLimit:
    """A token bucket over all callers. Thread-safe."""

    def __init__(self, clock: Clock, per_s: float = CALLS_PER_S, burst: int = BURST_CALLS) -> None:
        self._clock = clock
        self._per_s = per_s
        self._burst = float(burst)
        self._left = float(burst)
        self._at_s = clock.monotonic_s()
        self._lock = threading.Lock()

    def take(self) -> None:
        """Count one call.

        Raises:
            OverloadedError: too many calls lately.
        """
        with self._lock:
            now_s = self._clock.monotonic_s()
            self._left = min(self._burst, self._left + (now_s - self._at_s) * self._per_s)
            self._at_s = now_s
            if self._left < 1.0:
                raise OverloadedError("too many enrolment calls at the moment; try again in a few seconds")
            self._left -= 1.0


def enrolment_handler(enrolment: Enrolment, clock: Clock) -> grpc.GenericRpcHandler:
    """The EnrolmentService over `enrolment`."""
    limit = RateLimit(clock)

    def get_authority(data: bytes, context: grpc.ServicerContext) -> bytes:
        limit.take()
        return enrolment_pb2.GetAuthorityResponse(authority_pem=enrolment.authority_pem()).SerializeToString()

    def challenge(data: bytes, context: grpc.ServicerContext) -> bytes:
        limit.take()
        try:
            request = enrolment_pb2.ChallengeRequest.FromString(data)
        except DecodeError as error:
            raise FormatError("not a ChallengeRequest message") from error
        return enrolment_pb2.ChallengeResponse(nonce=enrolment.challenge(request.subject)).SerializeToString()

    def enrol(data: bytes, context: grpc.ServicerContext) -> bytes:
        limit.take()
        return to_bytes(enrolment.enrol(from_bytes(EnrolRequest, data, max_bytes=MAX_ENROLMENT_BYTES)))

    def renew(data: bytes, context: grpc.ServicerContext) -> bytes:
        limit.take()
        return to_bytes(enrolment.renew(from_bytes(RenewRequest, data, max_bytes=MAX_ENROLMENT_BYTES)))

    methods = {"GetAuthority": get_authority, "Challenge": challenge, "Enrol": enrol, "Renew": renew}
    return service(SERVICE, methods)
