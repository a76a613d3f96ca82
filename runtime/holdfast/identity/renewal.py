"""Keeps the certificate fresh: a new one at half of its life, by proof of possession of the report key.

An expired certificate is renewed the same way, so a device that was away for months comes back by itself. A device
that was revoked is told so, keeps serving, and asks again at long intervals: revocation may have been a mistake.
"""

from __future__ import annotations

import logging
import random
from typing import Protocol

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, TrustError
from holdfast.identity.device import Device
from holdfast.identity.enrol import check_certificate
from holdfast.lifecycle import Stop
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.channel import ClientIdentity
from holdfast.link.enrolment import EnrolmentLink
from holdfast.trust.certificates import create_csr, spki_sha256
from holdfast.wire.enrolment import renewal_proof_message
from holdfast.wire.messages import RenewRequest

logger = logging.getLogger(__name__)

NS_PER_S = 1_000_000_000
RENEW_AT = (0.45, 0.55)  # of the lifetime: half, spread so that a fleet started together does not renew together
RETRY_S = (5.0, 900.0)  # first and longest pause after a failure
MAX_SLEEP_S = 60.0  # the wall clock may jump; look again at least this often


class Renewable(Protocol):
    """Something that holds a connection under the certificate."""

    def renew(self, identity: ClientIdentity) -> None:
        """Use this certificate for new calls."""


class Renewal:
    """The task that renews."""

    def __init__(
        self, device: Device, link: Renewable, ledger: ByteLedger, clock: Clock, chance: random.Random
    ) -> None:
        self._device = device
        self._link = link
        self._ledger = ledger
        self._clock = clock
        self._chance = chance
        self._fraction = chance.uniform(*RENEW_AT)
        self._failures = 0

    def run(self, stop: Stop) -> None:
        """Renew whenever due, until `stop`."""
        while not stop.is_set:
            due_s = self.due_in_s()
            if due_s > 0:
                stop.wait(min(due_s, MAX_SLEEP_S))
                continue
            try:
                self.renew()
            except HoldfastError as error:
                self._failures += 1
                logger.warning("certificate not renewed", extra={"error": str(error), "failures": self._failures})
                stop.wait(self._pause_s())

    def due_in_s(self) -> float:
        """Seconds until the certificate should be renewed; 0 or less = now."""
        not_before, not_after = self._device.certificate_validity
        due_ns = not_before + round((not_after - not_before) * self._fraction)
        return (due_ns - self._clock.utc_ns()) / NS_PER_S

    def renew(self) -> None:
        """Get a new certificate, store it, and move the link to it.

        Raises:
            EnrolmentError: refused, or the answer does not hold.
            LinkError: the coordinator cannot be reached.
        """
        certificate = renew_certificate(self._device, self._ledger)
        self._device.replace_certificate(certificate)
        self._link.renew(self._device.client_identity)
        self._fraction = self._chance.uniform(*RENEW_AT)
        self._failures = 0
        logger.info("certificate renewed", extra={"not_after_utc_ns": self._device.certificate_validity[1]})

    def _pause_s(self) -> float:
        first, longest = RETRY_S
        return self._chance.uniform(first / 2, min(longest, first * 2 ** min(self._failures, 16)))


def renew_certificate(device: Device, ledger: ByteLedger) -> bytes:
    """Ask for a new certificate for the same TLS key, and check what comes. Stores nothing."""
    device_id = device.record.device_id
    csr_pem = create_csr(device.tls_key, device_id).decode("ascii")
    link = EnrolmentLink(device.record.enrolment_address, device.authority, ledger)
    try:
        nonce = link.challenge(device_id)
        proof = device.report_key.sign(renewal_proof_message(device_id=device_id, csr_pem=csr_pem, nonce=nonce))
        response = link.renew(RenewRequest(device_id, csr_pem, nonce, proof))
    finally:
        link.close()
    if spki_sha256(response.authority_pem.encode()) != spki_sha256(device.authority):
        raise TrustError("the coordinator names another authority than the one pinned at enrolment; enrol again")
    certificate = response.certificate_pem.encode()
    check_certificate(certificate, device.authority, device.tls_key, device_id, response.server_utc_ns)
    return certificate
