"""`EnrolmentLink`: first contact and renewal, on the listener that authenticates the server only.

First contact, in an order that leaves no trap:
1. fetch the server's leaf certificate, trusting nothing, and make it the only root of a temporary channel (gRPC's TLS
   accepts a leaf as a trust anchor), so that a middle man would have to stay the same for the next step;
2. ask for the authority's certificate and compare the hash of its key with the one in the join token;
3. open a fresh channel with that authority as the ONLY root; nothing secret is sent before this one stands.
"""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from holdfast.errors import EnrolmentError, HoldfastError, LinkError, RefusedCallError
from holdfast.link import byte_ledger
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.channel import ENROLMENT, Method, call, call_bytes, open_channel
from holdfast.trust.certificates import MAX_CERTIFICATE_BYTES, server_name, spki_sha256, trust_domain_of
from holdfast.wire.messages import EnrolRequest, EnrolResponse, RenewRequest, RenewResponse
from holdfast.wire.v1 import enrolment_pb2

T = TypeVar("T")
M = TypeVar("M", bound=Message)

ANY_SERVER_NAME = "localhost"  # every server certificate of ours carries it; before the pin check no name is known
TIMEOUT_S = 20.0
NONCE_BYTES = range(16, 65)

GET_AUTHORITY = Method(ENROLMENT + "GetAuthority", byte_ledger.ENROLMENT, TIMEOUT_S)
CHALLENGE = Method(ENROLMENT + "Challenge", byte_ledger.ENROLMENT, TIMEOUT_S)
ENROL = Method(ENROLMENT + "Enrol", byte_ledger.ENROLMENT, TIMEOUT_S)
RENEW = Method(ENROLMENT + "Renew", byte_ledger.ENROLMENT, TIMEOUT_S)


@dataclass(frozen=True, slots=True)
class PinnedAuthority:
    """The authority's certificate (PEM) whose key has the pinned hash, and its trust domain."""

    certificate: bytes
    trust_domain: str


def fetch_authority(address: str, authority_sha256: str, ledger: ByteLedger) -> PinnedAuthority:
    """Steps 1 and 2: the authority's certificate, checked against the pin. Sends nothing but the question.

    Raises:
        EnrolmentError: the server's authority is not the pinned one.
        LinkError: the server cannot be reached or does not speak this protocol.
    """
    leaf = _fetch_leaf(address)
    channel = open_channel(address, leaf, ANY_SERVER_NAME)
    try:
        request = enrolment_pb2.GetAuthorityRequest().SerializeToString()
        data = call_bytes(channel, GET_AUTHORITY, request, ledger)
    finally:
        channel.close()
    certificate = _parsed(enrolment_pb2.GetAuthorityResponse(), data).authority_pem.encode()
    try:
        got = spki_sha256(certificate)
        trust_domain = trust_domain_of(certificate)
    except HoldfastError as error:
        raise EnrolmentError(f"{address} offered no readable authority certificate: {error}") from error
    if not hmac.compare_digest(got, authority_sha256):
        raise EnrolmentError(
            f"the coordinator at {address} has the authority key {got[:16]}, the join token pins "
            f"{authority_sha256[:16]}; nothing secret was sent. Is this the right coordinator?"
        )
    return PinnedAuthority(certificate, trust_domain)


class EnrolmentLink:
    """Calls under a pinned authority."""

    def __init__(self, address: str, authority: bytes, ledger: ByteLedger) -> None:
        self._ledger = ledger
        self._channel = open_channel(address, authority, server_name(trust_domain_of(authority)))

    def challenge(self, subject: str) -> bytes:
        """A fresh nonce for a token id (to enrol) or a device id (to renew)."""
        request = enrolment_pb2.ChallengeRequest(subject=subject).SerializeToString()
        data = _refused_as_enrolment(lambda: call_bytes(self._channel, CHALLENGE, request, self._ledger))
        nonce = _parsed(enrolment_pb2.ChallengeResponse(), data).nonce
        if len(nonce) not in NONCE_BYTES:
            raise LinkError(f"the coordinator's nonce has {len(nonce)} bytes, expected {NONCE_BYTES.start} or more")
        return nonce

    def enrol(self, request: EnrolRequest) -> EnrolResponse:
        """Send the token's secret and the proof.

        Raises:
            EnrolmentError: refused; the text is the coordinator's.
        """
        return _refused_as_enrolment(lambda: call(self._channel, ENROL, request, EnrolResponse, self._ledger))

    def renew(self, request: RenewRequest) -> RenewResponse:
        """Ask for a new certificate by proof of possession of the report key.

        Raises:
            EnrolmentError: refused, for example because the device was revoked.
        """
        return _refused_as_enrolment(lambda: call(self._channel, RENEW, request, RenewResponse, self._ledger))

    def close(self) -> None:
        self._channel.close()


def split_address(address: str) -> tuple[str, int]:
    """(host, port) of host:port; an IPv6 host stands in brackets.

    Raises:
        EnrolmentError: it is not one.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65_535:
        raise EnrolmentError(f"coordinator address {address[:200]!r} is not host:port; get a new join token")
    return host, int(port)


def _fetch_leaf(address: str) -> bytes:
    try:
        leaf = ssl.get_server_certificate(split_address(address), timeout=TIMEOUT_S)
    except (OSError, ValueError) as error:
        # ssl.SSLError and timeouts are OSErrors; ValueError comes from a host name that is none
        raise LinkError(f"no coordinator answers with TLS at {address}: {error}") from error
    if len(leaf) > MAX_CERTIFICATE_BYTES:
        raise LinkError(f"{address} shows a certificate of {len(leaf)} bytes; a coordinator's has about 1000")
    return leaf.encode()


def _parsed(message: M, data: bytes) -> M:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise LinkError(f"the answer is not a {type(message).__name__}; is this a Holdfast coordinator?") from error
    return message


def _refused_as_enrolment(remote: Callable[[], T]) -> T:
    try:
        return remote()
    except RefusedCallError as error:
        raise EnrolmentError(str(error)) from error
