"""Enrolment: from a join token to a device with a certificate and pinned keys.

The keys are made here and never leave. Should the answer be lost on the way, the token is used up, but the keys are
kept: the same command with a fresh token of the same site gives the same device.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.errors import EnrolmentError, HoldfastError, StateError
from holdfast.identity.device import (
    FLOWER_KEY,
    Device,
    DeviceRecord,
    Pins,
    is_enrolled,
    make_keys,
    write_pins,
    write_record,
)
from holdfast.identity.state import StateFolder
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.enrolment import EnrolmentLink, PinnedAuthority, fetch_authority
from holdfast.trust.certificates import create_csr, spki_sha256, verify_chain
from holdfast.trust.durable import create_atomic, write_atomic
from holdfast.trust.keys import PrivateKey, PublicKey
from holdfast.trust.keystore import generate_flower_node_key
from holdfast.wire.enrolment import JoinToken, enrolment_proof_message
from holdfast.wire.messages import EnrolRequest, EnrolResponse

FIRST_KEY_EPOCH = 1


@dataclass(frozen=True, slots=True)
class SiteKeys:
    """What the site gives its devices to pin; it does not come from the coordinator."""

    site: PublicKey
    authors: tuple[PublicKey, ...]
    approvers: tuple[PublicKey, ...]


def enrol(state: StateFolder, token: JoinToken, keys: SiteKeys, clock: Clock, name: str = "") -> Device:
    """Make this state folder a device of the token's coordinator.

    Raises:
        StateError: it is enrolled already, or cannot be written.
        EnrolmentError: the token, the pin or the coordinator's answer is refused.
        LinkError: the coordinator cannot be reached.
    """
    if is_enrolled(state):
        raise StateError(f"{state.path} is enrolled already; use a new folder for another device")
    ledger = ByteLedger()
    tls_key, report_key = make_keys(state)
    flower_public_key = _make_flower_key(state)
    authority = fetch_authority(token.address, token.authority_sha256, ledger)
    device_id = own_device_id(report_key.public_key)
    csr_pem = create_csr(tls_key, device_id).decode("ascii")
    link = EnrolmentLink(token.address, authority.certificate, ledger)
    try:
        nonce = link.challenge(token.token_id)
        proof = enrolment_proof_message(
            token_id=token.token_id,
            csr_pem=csr_pem,
            report_key_spki=report_key.public_key.spki_der,
            flower_public_key=flower_public_key,
            nonce=nonce,
        )
        request = EnrolRequest(
            token_id=token.token_id,
            token_secret=token.secret,
            csr_pem=csr_pem,
            report_key_spki=report_key.public_key.spki_der,
            flower_public_key=flower_public_key,
            nonce=nonce,
            proof=report_key.sign(proof),
            device_name=name,
        )
        response = link.enrol(request)
    finally:
        link.close()
    _check_answer(response, authority, tls_key, device_id)
    _store(state, response, keys, token.address, clock)
    return Device(state)


def own_device_id(report_key: PublicKey) -> str:
    """The id a device proposes: it follows from its report key, so that no two devices propose the same."""
    return f"d-{report_key.key_id[:16]}"


def check_certificate(certificate: bytes, authority: bytes, tls_key: PrivateKey, device_id: str, utc_ns: int) -> None:
    """That a certificate is for this device and this key, by the pinned authority.

    Raises:
        EnrolmentError: it is not.
    """
    try:
        leaf = verify_chain(certificate, [authority], "device", utc_ns)
    except HoldfastError as error:
        raise EnrolmentError(f"the coordinator sent a certificate that does not hold: {error}") from error
    if leaf.device_id != device_id or leaf.public_key != tls_key.public_key:
        raise EnrolmentError(f"the coordinator sent a certificate for {leaf.device_id!r}, this device is {device_id!r}")


def _check_answer(response: EnrolResponse, authority: PinnedAuthority, tls_key: PrivateKey, device_id: str) -> None:
    try:
        got = spki_sha256(response.authority_pem.encode())
    except HoldfastError as error:
        raise EnrolmentError(f"the coordinator's answer holds no authority certificate: {error}") from error
    if got != spki_sha256(authority.certificate) or response.trust_domain != authority.trust_domain:
        raise EnrolmentError("the coordinator's answer names another authority than the join token pins")
    if response.device_id != device_id:
        raise EnrolmentError(f"the coordinator enrolled {response.device_id[:100]!r}, this device is {device_id!r}")
    certificate = response.certificate_pem.encode()
    # the server's time, authenticated by TLS: this machine's clock may be far off before its first contact
    check_certificate(certificate, authority.certificate, tls_key, device_id, response.server_utc_ns)


def _store(state: StateFolder, response: EnrolResponse, keys: SiteKeys, address: str, clock: Clock) -> None:
    try:
        ledger, run, assignment = (
            PublicKey.from_spki_der(der)
            for der in (response.ledger_key_spki, response.run_key_spki, response.assignment_key_spki)
        )
    except HoldfastError as error:
        raise EnrolmentError(f"the coordinator's answer holds a key that cannot be read: {error}") from error
    write_pins(state, Pins(keys.site, keys.authors, keys.approvers, ledger, run, assignment))
    write_atomic(state.identity / "authority.pem", response.authority_pem.encode(), 0o644)
    write_atomic(state.identity / "certificate.pem", response.certificate_pem.encode(), 0o644)
    record = DeviceRecord(
        device_id=response.device_id,
        site=response.site,
        trust_domain=response.trust_domain,
        device_address=response.device_address,
        enrolment_address=address,
        key_epoch=FIRST_KEY_EPOCH,
        enrolled_utc_ns=clock.utc_ns(),
    )
    write_record(state, record)  # last: from here on the device is enrolled


def _make_flower_key(state: StateFolder) -> str:
    """The public Flower node key; the pair is made now if there is none."""
    private_path, public_path = state.identity / FLOWER_KEY, state.identity / f"{FLOWER_KEY}.pub"
    if not public_path.exists():
        private, public = generate_flower_node_key()
        private_path.unlink(missing_ok=True)  # half a pair, from an interrupted enrolment
        create_atomic(private_path, private, 0o600)
        write_atomic(public_path, public, 0o644)  # last: its presence says that the pair is whole
    return public_path.read_text(encoding="ascii")
