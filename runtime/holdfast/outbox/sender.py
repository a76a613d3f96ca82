"""Brings the journal to the coordinator: in batches, in order, as often as it takes.

At least once, with the effect of exactly once: a record counts as delivered when an acknowledgement with the ledger
key's promise names it. Failures are retried for ever, at random times between nothing and a growing, capped bound
("full jitter"), so that a fleet that lost its coordinator does not come back in one moment.
"""

from __future__ import annotations

import logging
import random
import threading
from dataclasses import dataclass
from typing import Protocol

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, LinkError, RefusedCallError, TrustError
from holdfast.lifecycle import Stop
from holdfast.outbox.checkpoints import CheckpointMemory
from holdfast.outbox.journal import Journal
from holdfast.trust.envelope import verify_envelope
from holdfast.trust.keys import PublicKey
from holdfast.wire.convert import from_bytes
from holdfast.wire.limits import MAX_STATEMENT_BYTES
from holdfast.wire.messages import PROMISE_TYPE, Acknowledgement, InclusionPromise, ReportRequest

logger = logging.getLogger(__name__)

IDLE_S = 0.5  # how long a new record waits at most before it is noticed
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 300.0  # after an outage the last device is back within five minutes
MAX_RETRY_AFTER_S = 3_600.0  # a coordinator may ask for patience, not for silence


class ReportTransport(Protocol):
    """The part of the link that the sender needs."""

    def report(self, request: ReportRequest) -> Acknowledgement:
        """Hand over records; raises LinkError."""


@dataclass(frozen=True, slots=True)
class Recipient:
    """Whose acknowledgement counts: the pinned ledger key, for this device."""

    ledger_key: PublicKey
    device_id: str


@dataclass(slots=True)
class SenderStatus:
    """What the sender last knew; for `agent status`, not for decisions."""

    last_contact_utc_ns: int = 0
    last_error: str = ""
    failures: int = 0


class Sender:
    """The task that sends."""

    def __init__(
        self,
        journal: Journal,
        transport: ReportTransport,
        recipient: Recipient,
        checkpoints: CheckpointMemory,
        clock: Clock,
        chance: random.Random,
    ) -> None:
        self._journal = journal
        self._transport = transport
        self._recipient = recipient
        self._checkpoints = checkpoints
        self._clock = clock
        self._chance = chance
        self._line_failed = False
        self._may_hurry = threading.Event()
        self.status = SenderStatus()

    def run(self, stop: Stop) -> None:
        """Send whatever is pending, until `stop`."""
        while not stop.is_set:
            self._rest(stop, self.step())

    def line_is_up(self) -> None:
        """Another call got through: a pause after a failed line ends now. Other pauses are kept."""
        self._may_hurry.set()

    def finish(self) -> None:
        """One last attempt when the process ends, if the line was good; what is left waits for the next start."""
        if self.status.failures == 0:
            self.step()

    def step(self) -> float:
        """Send one batch if there is one. Returns how many seconds to wait before the next step."""
        if not self._journal.head().has_pending:
            return IDLE_S
        try:
            acknowledgement = self.send_batch()
        except HoldfastError as error:
            self._line_failed = isinstance(error, LinkError) and not isinstance(error, RefusedCallError)
            return self._failed(str(error))
        self._line_failed = False
        if acknowledgement.refused_code and acknowledgement.refused_code != "gap":
            return self._failed(f"{acknowledgement.refused_code}: {acknowledgement.refused_reason[:300]}")
        self.status = SenderStatus(self._clock.utc_ns())
        return min(acknowledgement.retry_after_ms / 1000, MAX_RETRY_AFTER_S)

    def send_batch(self) -> Acknowledgement:
        """Send the next batch and note what was acknowledged.

        Raises:
            LinkError: the coordinator cannot be reached.
            TrustError: its acknowledgement is not signed by the ledger key, or its log does not hold.
            ChainError: its view of the chain does not fit this one, or a gap that sending again did not close.
        """
        before = self._journal.head().acknowledged_seq
        acknowledgement = self._transport.report(ReportRequest(self._journal.pending()))
        check_promise(acknowledgement, self._recipient)
        self._checkpoints.take(acknowledgement.checkpoint)
        self._journal.acknowledge(acknowledgement)
        if acknowledgement.refused_code == "gap" and acknowledgement.head_seq == before:
            raise TrustError(f"the coordinator asks again for record {before + 1}, which was just sent")
        return acknowledgement

    def _rest(self, stop: Stop, pause_s: float) -> None:
        until_s = self._clock.monotonic_s() + pause_s
        self._may_hurry.clear()
        while not (self._line_failed and self._may_hurry.is_set()):
            left_s = until_s - self._clock.monotonic_s()
            if left_s <= 0 or stop.wait(min(left_s, IDLE_S)):
                return

    def _failed(self, error: str) -> float:
        failures = self.status.failures + 1
        self.status = SenderStatus(self.status.last_contact_utc_ns, error, failures)
        logger.warning("records not delivered", extra={"error": error, "failures": failures})
        return self._chance.uniform(0.0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(failures, 16)))


def check_promise(acknowledgement: Acknowledgement, recipient: Recipient) -> None:
    """That the acknowledgement's head is promised to this device by the ledger key.

    Raises:
        TrustError: it is not. The records stay in the journal.
    """
    if acknowledgement.promise is None:
        raise TrustError("the coordinator's acknowledgement carries no promise; the records are kept")
    verified = verify_envelope(acknowledgement.promise, PROMISE_TYPE, [recipient.ledger_key])
    promise = from_bytes(InclusionPromise, verified.payload, max_bytes=MAX_STATEMENT_BYTES)
    head = (recipient.device_id, acknowledgement.head_seq, acknowledgement.head_hash)
    if (promise.device_id, promise.head_seq, promise.head_hash) != head:
        raise TrustError("the coordinator's promise is for another head than its acknowledgement; the records are kept")
