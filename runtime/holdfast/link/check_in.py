"""The check-in: says what is in service, and hands what comes back to whoever it is for.

A handler that fails with a known error is logged and hears the same again with the next check-in; the loop goes on.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast import __version__
from holdfast.clock import Clock
from holdfast.errors import HoldfastError
from holdfast.lifecycle import Stop
from holdfast.trust.envelope import Envelope
from holdfast.wire.messages import AssignmentDelivery, CheckInRequest, CheckInResponse

logger = logging.getLogger(__name__)

LONGEST_PAUSE_S = 300.0
MIN_INTERVAL_S = 0.2  # a coordinator may ask for haste, not for a busy loop
MAX_INTERVAL_S = 3_600.0


class AssignmentHandler(Protocol):
    """Brings assigned models into service, and knows what is."""

    def handle(self, deliveries: Sequence[AssignmentDelivery]) -> None:
        """Carry out what is new; may take long. Raises HoldfastError to hear it again."""

    def active(self) -> Mapping[str, str]:
        """Model name -> digest of the bundle in service."""

    def number(self) -> int:
        """The highest assignment number that needs no repeating."""


class OfferHandler(Protocol):
    """Answers round offers."""

    def handle(self, offers: Sequence[Envelope]) -> None:
        """Answer what is new; offers come again with every check-in while they are open."""


class CheckInTransport(Protocol):
    """The part of the link that is needed here."""

    def check_in(self, request: CheckInRequest) -> CheckInResponse:
        """Raises LinkError."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """Who hears what came back."""

    assignments: AssignmentHandler
    offers: OfferHandler


class NoAssignments:
    """A device without models: for a build that leaves them out, and for tests."""

    def handle(self, deliveries: Sequence[AssignmentDelivery]) -> None:
        if deliveries:
            logger.warning("assignments passed over: nothing here installs models", extra={"count": len(deliveries)})

    def active(self) -> Mapping[str, str]:
        return {}

    def number(self) -> int:
        return 0


class NoOffers:
    """A device that does not train, for example one without local samples."""

    def handle(self, offers: Sequence[Envelope]) -> None:
        if offers:
            logger.info("offers passed over: this device does not train", extra={"count": len(offers)})


class CheckIn:
    """The task that checks in.

    Args:
        policy_digest: of the policy in force.
        contact: told the server's clock minus this device's, in nanoseconds, after every check-in.
    """

    def __init__(
        self,
        transport: CheckInTransport,
        handlers: Handlers,
        policy_digest: Callable[[], str],
        contact: Callable[[int], None],
        interval_s: float,
        clock: Clock,
    ) -> None:
        self._transport = transport
        self._handlers = handlers
        self._policy_digest = policy_digest
        self._contact = contact
        self._interval_s = interval_s
        self._clock = clock
        self._chance = random.Random()
        self._failures = 0

    def run(self, stop: Stop) -> None:
        """Check in until `stop`."""
        while not stop.is_set:
            stop.wait(self.step())

    def step(self) -> float:
        """Check in once. Returns how many seconds to wait before the next time."""
        try:
            response = self._check_in()
        except HoldfastError as error:
            self._failures += 1
            logger.warning("check-in failed", extra={"error": str(error), "failures": self._failures})
            return self._chance.uniform(0.0, min(LONGEST_PAUSE_S, self._interval_s * 2 ** min(self._failures, 16)))
        self._failures = 0
        before = dict(self._handlers.assignments.active())
        self._hand_on("assignments", lambda: self._handlers.assignments.handle(response.assignments))
        self._hand_on("offers", lambda: self._handlers.offers.handle(response.offers))
        if dict(self._handlers.assignments.active()) != before:
            return MIN_INTERVAL_S  # what is in service changed: say so, rather than look idle until the next time
        asked_s = response.next_check_in_ms / 1000 or self._interval_s
        # a tenth of spread, so that a fleet started together does not stay in step
        return min(max(asked_s, MIN_INTERVAL_S), MAX_INTERVAL_S) * self._chance.uniform(0.9, 1.1)

    def _check_in(self) -> CheckInResponse:
        request = CheckInRequest(
            active=dict(self._handlers.assignments.active()),
            policy_digest=self._policy_digest(),
            assignment_number=self._handlers.assignments.number(),
            agent_version=__version__,
        )
        sent_ns = self._clock.utc_ns()
        response = self._transport.check_in(request)
        # half of the round trip: the server read its clock somewhere in between
        self._contact(response.server_utc_ns - (sent_ns + self._clock.utc_ns()) // 2)
        return response

    def _hand_on(self, what: str, handle: Callable[[], None]) -> None:
        try:
            handle()
        except HoldfastError as error:
            logger.warning("not carried out, to be tried again", extra={"what": what, "error": str(error)})
