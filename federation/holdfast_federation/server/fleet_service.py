"""The gRPC edge for enrolled devices: admit, bound, parse, delegate.

What a part of the coordinator answers is behind a Protocol. A part that is not there answers truthfully: nothing is
assigned, nothing is offered, there is nothing to fetch, and the Fleet tunnel is not implemented.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import grpc

from holdfast.clock import Clock
from holdfast.errors import TrustError, UnsupportedError
from holdfast.trust.envelope import Envelope
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.limits import MAX_FLEET_MESSAGE_BYTES, MAX_MESSAGE_BYTES, MAX_PIECE_BYTES
from holdfast.wire.messages import (
    AssignmentDelivery,
    CheckInRequest,
    CheckInResponse,
    FetchRequest,
    FetchResponse,
    FleetCallRequest,
    FleetCallResponse,
    ReportRequest,
)
from holdfast_federation.devices.records import Devices
from holdfast_federation.ingest.accept import Ingest
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.server.admission import Admission
from holdfast_federation.server.edge import service

SERVICE = "holdfast.wire.v1.FleetService"
MAX_SMALL_BYTES = 65_536  # 64 KiB: a check-in names the models in service, a fetch one blob


class Deliveries(Protocol):
    """What a device shall serve (rollout)."""

    def deliveries(self, device_id: str, after_number: int) -> tuple[AssignmentDelivery, ...]:
        """The assignments of a device above a number, with their approvals."""


class Offers(Protocol):
    """What a device is asked to join (rounds)."""

    def offers(self, device_id: str) -> tuple[Envelope, ...]:
        """The open round offers for a device."""


class Pieces(Protocol):
    """What a device may fetch (rollout and registry)."""

    def may_fetch(self, device_id: str, blob_sha256: str) -> bool:
        """Whether a blob belongs to something assigned or offered to the device."""

    def piece(self, blob_sha256: str, offset: int, max_bytes: int) -> FetchResponse:
        """A part of a blob."""


class FleetGate(Protocol):
    """The way to the SuperLink (rounds)."""

    def forward(self, device_id: str, request: FleetCallRequest) -> FleetCallResponse:
        """Carry one HTTP call of Flower's Fleet API."""


class NoDeliveries:
    def deliveries(self, device_id: str, after_number: int) -> tuple[AssignmentDelivery, ...]:
        return ()


class NoOffers:
    def offers(self, device_id: str) -> tuple[Envelope, ...]:
        return ()


class NoPieces:
    def may_fetch(self, device_id: str, blob_sha256: str) -> bool:
        return False

    def piece(self, blob_sha256: str, offset: int, max_bytes: int) -> FetchResponse:
        raise UnsupportedError("this coordinator publishes no models")


class NoGate:
    def forward(self, device_id: str, request: FleetCallRequest) -> FleetCallResponse:
        raise UnsupportedError("this coordinator runs no federated rounds")


@dataclass(frozen=True, slots=True)
class FleetParts:
    """The parts behind the device listener; each has a truthful default."""

    deliveries: Deliveries = field(default_factory=NoDeliveries)
    offers: Offers = field(default_factory=NoOffers)
    pieces: Pieces = field(default_factory=NoPieces)
    gate: FleetGate = field(default_factory=NoGate)


class FleetService:
    """Answers devices. Every method admits its caller first."""

    def __init__(
        self, admission: Admission, devices: Devices, ingest: Ingest, ledger: Ledger, clock: Clock, check_in_s: float
    ) -> None:
        self._admission = admission
        self._devices = devices
        self._ingest = ingest
        self._ledger = ledger
        self._clock = clock
        self._check_in_ms = round(check_in_s * 1_000)
        self._parts = FleetParts()

    def handler(self, parts: FleetParts) -> grpc.GenericRpcHandler:
        """The FleetService over `parts`."""
        self._parts = parts
        methods = {
            "Report": self.report,
            "CheckIn": self.check_in,
            "Fetch": self.fetch,
            "FleetCall": self.fleet_call,
        }
        return service(SERVICE, methods)

    def report(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        device = self._admission.admit(_properties(context))
        request = from_bytes(ReportRequest, data, max_bytes=MAX_MESSAGE_BYTES)
        return to_bytes(self._ingest.accept(device.device_id, request.records))

    def check_in(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        device = self._admission.admit(_properties(context))
        request = from_bytes(CheckInRequest, data, max_bytes=MAX_SMALL_BYTES)
        self._devices.seen(device.device_id, request, self._clock.utc_ns())
        response = CheckInResponse(
            server_utc_ns=self._clock.utc_ns(),
            assignments=self._parts.deliveries.deliveries(device.device_id, request.assignment_number),
            offers=self._parts.offers.offers(device.device_id),
            checkpoint=self._ledger.checkpoint(),
            next_check_in_ms=self._check_in_ms,
        )
        return to_bytes(response)

    def fetch(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        device = self._admission.admit(_properties(context))
        request = from_bytes(FetchRequest, data, max_bytes=MAX_SMALL_BYTES)
        if not self._parts.pieces.may_fetch(device.device_id, request.blob_sha256):
            # the same answer for "not yours" and "does not exist"
            raise TrustError(f"blob {request.blob_sha256[:64]!r} is not assigned or offered to this device")
        max_bytes = min(request.max_bytes or MAX_PIECE_BYTES, MAX_PIECE_BYTES)
        return to_bytes(self._parts.pieces.piece(request.blob_sha256, request.offset, max_bytes))

    def fleet_call(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        device = self._admission.admit(_properties(context))
        request = from_bytes(FleetCallRequest, data, max_bytes=MAX_FLEET_MESSAGE_BYTES)
        return to_bytes(self._parts.gate.forward(device.device_id, request))


def _properties(context: grpc.ServicerContext) -> Mapping[str, Sequence[bytes]]:
    # the type stubs say bytes; grpcio hands out a list of bytes per property
    return cast("Mapping[str, Sequence[bytes]]", context.auth_context())
