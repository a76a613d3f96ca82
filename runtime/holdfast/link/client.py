"""`Link`: the device's calls on the listener that requires its certificate.

One channel at a time. Renewal opens a second channel with the new certificate, moves new calls to it, and closes the
first when its running calls have ended or their time is up: gRPC for Python cannot change a channel's certificate.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TypeVar

import grpc

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, LinkError
from holdfast.link import byte_ledger
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.channel import FLEET, MAX_TUNNEL_BYTES, ClientIdentity, Method, call, open_channel
from holdfast.trust.certificates import BACKDATE_S, server_name, trust_domain_of, validity_of
from holdfast.wire.messages import (
    Acknowledgement,
    CheckInRequest,
    CheckInResponse,
    FetchRequest,
    FetchResponse,
    FleetCallRequest,
    FleetCallResponse,
    ReportRequest,
)

T = TypeVar("T")

NS_PER_S = 1_000_000_000

REPORT = Method(FLEET + "Report", byte_ledger.REPORT, timeout_s=30.0)
CHECK_IN = Method(FLEET + "CheckIn", byte_ledger.CHECK_IN, timeout_s=30.0)
FETCH = Method(FLEET + "Fetch", byte_ledger.FETCH, timeout_s=60.0)
FLEET_CALL = Method(FLEET + "FleetCall", byte_ledger.FEDERATED, timeout_s=120.0, max_bytes=MAX_TUNNEL_BYTES)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where the device listener is (host:port), and the authority (PEM) that vouches for it."""

    address: str
    authority: bytes


class Link:
    """Typed calls to the coordinator. Thread-safe. Dials with the first call."""

    def __init__(self, endpoint: Endpoint, identity: ClientIdentity, ledger: ByteLedger, clock: Clock) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = False
        self._current = self._open(identity)

    def report(self, request: ReportRequest) -> Acknowledgement:
        """Hand over signed records. Raises LinkError; nothing is known about the records then."""
        return self._call(REPORT, request, Acknowledgement)

    def check_in(self, request: CheckInRequest) -> CheckInResponse:
        """Say what is in service, and ask what to do next."""
        return self._call(CHECK_IN, request, CheckInResponse)

    def fetch(self, request: FetchRequest) -> FetchResponse:
        """One piece of an assigned blob. The caller checks its hash."""
        return self._call(FETCH, request, FetchResponse)

    def fleet_call(self, request: FleetCallRequest) -> FleetCallResponse:
        """Carry one HTTP call of Flower's Fleet API."""
        return self._call(FLEET_CALL, request, FleetCallResponse)

    def renew(self, identity: ClientIdentity) -> None:
        """Use a new certificate from the next call on; running calls finish on the old channel."""
        fresh = self._open(identity)
        with self._lock:
            old, self._current = self._current, fresh
        old.retire()

    def close(self) -> None:
        """Close the channel; later calls raise LinkError."""
        with self._lock:
            self._closed = True
        self._current.retire()

    def _open(self, identity: ClientIdentity) -> _Connection:
        name = server_name(trust_domain_of(self._endpoint.authority))
        channel = open_channel(
            self._endpoint.address, self._endpoint.authority, name, identity, max_bytes=MAX_TUNNEL_BYTES
        )
        return _Connection(channel, identity)

    def _call(self, method: Method, request: object, answer: type[T]) -> T:
        with self._lock:
            if self._closed:
                raise LinkError("the link to the coordinator is closed; the agent is stopping")
            connection = self._current
            connection.enter()  # under the lock: a renewal must not close it in between
        with connection:
            return call(connection.channel, method, request, answer, self._ledger, partial(self._explain, connection))

    def _explain(self, connection: _Connection) -> str:
        return diagnose(connection.identity, self._clock.utc_ns())


class _Connection:
    """A channel that is closed by whoever leaves it last after it was retired."""

    def __init__(self, channel: grpc.Channel, identity: ClientIdentity) -> None:
        self.channel = channel
        self.identity = identity
        self._lock = threading.Lock()
        self._running = 0
        self._retired = False

    def enter(self) -> None:
        with self._lock:
            self._running += 1

    def retire(self) -> None:
        with self._lock:
            self._retired = True
            unused = self._running == 0
        if unused:
            self.channel.close()

    def __enter__(self) -> None:
        """The call was counted by `enter` already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._running -= 1
            unused = self._retired and self._running == 0
        if unused:
            self.channel.close()


def diagnose(identity: ClientIdentity, utc_ns: int) -> str:
    """What this device itself may have wrong when TLS fails: a refused client is told nothing but "socket closed"."""
    try:
        not_before, not_after = validity_of(identity.certificate)
    except HoldfastError as error:
        return f"the device certificate on disk cannot be read ({error})"
    if utc_ns >= not_after:
        expired_s = (utc_ns - not_after) // NS_PER_S
        return f"the device certificate expired {expired_s} s ago by this machine's clock; it is renewed automatically"
    if utc_ns < not_before:
        return "the device certificate is not valid yet by this machine's clock; set the clock"
    if utc_ns < not_before + BACKDATE_S * NS_PER_S:
        return "this machine's clock may be behind the coordinator's; check it"
    return "is the coordinator running, and is its address still the one given at enrolment?"
