"""Enrolment and renewal: who gets a certificate, decided by a token or by possession of the report key.

Order of the checks: the cheap ones first, the token's secret before any signature, everything before the one
transaction that uses the token up, adds the device and writes the ledger entry. A refusal changes nothing.

The device proposes its id in the certificate request; it must be free. A device that enrols again with the same report
key and a fresh token of its own site (its disk was lost before the answer was stored) stays the same device.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from holdfast.clock import Clock
from holdfast.errors import EnrolmentError, FormatError, TrustError
from holdfast.trust.certificates import read_csr
from holdfast.trust.keys import PublicKey
from holdfast.wire.convert import to_bytes
from holdfast.wire.enrolment import enrolment_proof_message, renewal_proof_message
from holdfast.wire.messages import EnrolmentRecord, EnrolRequest, EnrolResponse, RenewRequest, RenewResponse
from holdfast_federation.database import Database
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.enrolment.authority import CertificateAuthority
from holdfast_federation.enrolment.challenges import Challenges
from holdfast_federation.enrolment.tokens import TokenGrant, Tokens, check_label
from holdfast_federation.events.outbox import emit
from holdfast_federation.ledger.log import Ledger

FIRST_KEY_EPOCH = 1
MAX_FLOWER_KEY_CHARACTERS = 512  # a P-384 key in OpenSSH text has about 200


@dataclass(frozen=True, slots=True)
class PublicKeys:
    """The coordinator's own keys that a device pins at enrolment."""

    ledger: PublicKey
    run: PublicKey
    assignment: PublicKey


@dataclass(frozen=True, slots=True)
class Stores:
    """Where enrolment reads and writes."""

    database: Database
    devices: Devices
    tokens: Tokens
    ledger: Ledger


class Enrolment:
    """Answers the calls of the enrolment listener.

    Args:
        device_address: host:port of the device listener, asked at each enrolment (a port may be chosen at start).
    """

    def __init__(
        self,
        stores: Stores,
        authority: CertificateAuthority,
        keys: PublicKeys,
        device_address: Callable[[], str],
        clock: Clock,
    ) -> None:
        self._stores = stores
        self._authority = authority
        self._keys = keys
        self._device_address = device_address
        self._clock = clock
        self._challenges = Challenges(clock)

    def authority_pem(self) -> str:
        """The authority's certificate; the caller compares its key with the pin in its token."""
        return self._authority.certificate_pem

    def challenge(self, subject: str) -> bytes:
        """A nonce for a token id (to enrol) or a device id (to renew)."""
        return self._challenges.create(subject)

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Make the holder of a join token a device.

        Raises:
            EnrolmentError: token, nonce, proof, id or keys refused.
            FormatError, TrustError: the certificate request or a key is malformed or of another kind.
        """
        grant = self._stores.tokens.check(request.token_id, request.token_secret)
        self._challenges.check(request.nonce, request.token_id)
        report_key = PublicKey.from_spki_der(request.report_key_spki)
        message = enrolment_proof_message(
            token_id=request.token_id,
            csr_pem=request.csr_pem,
            report_key_spki=request.report_key_spki,
            flower_public_key=request.flower_public_key,
            nonce=request.nonce,
        )
        _require_proof(report_key, request.proof, message)
        _check_flower_key(request.flower_public_key)
        device_id = read_csr(request.csr_pem.encode()).device_id
        name = _device_name(grant, request, device_id)
        certificate = self._authority.issue_device(request.csr_pem, device_id)
        self._challenges.use(request.nonce)
        record = DeviceRecord(
            device_id=device_id,
            site=grant.site,
            name=name,
            report_key_spki=report_key.spki_der,
            key_epoch=FIRST_KEY_EPOCH,
            flower_public_key=request.flower_public_key,
            certificate_sha256=hashlib.sha256(certificate).hexdigest(),
            enrolled_utc_ns=self._clock.utc_ns(),
        )
        with self._stores.database.write() as cx:
            self._stores.tokens.consume(cx, grant, device_id)
            self._store(cx, record, grant)
        return self._response(record, certificate)

    def renew(self, request: RenewRequest) -> RenewResponse:
        """A new certificate for a known device, also long after its last one expired.

        Raises:
            EnrolmentError: unknown or revoked device, or nonce or proof refused.
            FormatError, TrustError: the certificate request is malformed or for another device.
        """
        device = self._stores.devices.find(request.device_id)
        if device is None:
            raise EnrolmentError(f"device {request.device_id[:100]!r} is not known here; enrol it with a join token")
        if device.is_revoked:
            raise EnrolmentError(f"device {device.device_id!r} was revoked; ask the operator of the coordinator")
        self._challenges.check(request.nonce, request.device_id)
        message = renewal_proof_message(device_id=request.device_id, csr_pem=request.csr_pem, nonce=request.nonce)
        _require_proof(device.report_key, request.proof, message)
        certificate = self._authority.issue_device(request.csr_pem, device.device_id)
        self._challenges.use(request.nonce)
        with self._stores.database.write() as cx:
            self._stores.devices.renewed(cx, device.device_id, hashlib.sha256(certificate).hexdigest())
        return RenewResponse(certificate.decode(), self._authority.certificate_pem, self._clock.utc_ns())

    def _store(self, cx: sqlite3.Connection, record: DeviceRecord, grant: TokenGrant) -> None:
        known = self._stores.devices.find(record.device_id)
        if known is not None and _is_same_device(known, record):
            self._stores.devices.enrolled_again(cx, record)
        else:
            self._stores.devices.add(cx, record)
        entry = EnrolmentRecord(
            device_id=record.device_id,
            site=record.site,
            report_key_spki=record.report_key_spki,
            key_epoch=record.key_epoch,
            token_id=grant.token_id,
            certificate_sha256=record.certificate_sha256,
        )
        body = to_bytes(entry)
        self._stores.ledger.record(cx, "enrolment", record.device_id, body)
        emit(cx, "enrolment", record.device_id, body, self._clock)

    def _response(self, record: DeviceRecord, certificate: bytes) -> EnrolResponse:
        return EnrolResponse(
            device_id=record.device_id,
            certificate_pem=certificate.decode("ascii"),
            authority_pem=self._authority.certificate_pem,
            trust_domain=self._authority.trust_domain,
            device_address=self._device_address(),
            ledger_key_spki=self._keys.ledger.spki_der,
            run_key_spki=self._keys.run.spki_der,
            assignment_key_spki=self._keys.assignment.spki_der,
            server_utc_ns=self._clock.utc_ns(),
            checkpoint=self._stores.ledger.checkpoint(),
            site=record.site,
        )


def _is_same_device(known: DeviceRecord, record: DeviceRecord) -> bool:
    same_key = known.report_key_spki == record.report_key_spki
    return same_key and known.site == record.site and not known.is_revoked


def _require_proof(key: PublicKey, proof: bytes, message: bytes) -> None:
    try:
        key.verify(proof, message)
    except TrustError as error:
        raise EnrolmentError("proof of possession does not hold; sign the challenge with the report key") from error


def _device_name(grant: TokenGrant, request: EnrolRequest, device_id: str) -> str:
    name = grant.name or request.device_name or device_id.lower()
    check_label("device name", name)
    return name


def _check_flower_key(text: str) -> None:
    if not text:
        return  # a device that never trains
    if len(text) > MAX_FLOWER_KEY_CHARACTERS:
        raise FormatError(f"flower key has {len(text)} characters; at most {MAX_FLOWER_KEY_CHARACTERS} are read")
    try:
        key = serialization.load_ssh_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError("flower key is not an OpenSSH public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise FormatError("flower key is not ECDSA P-384")
