"""The certificate authority of one trust domain, and what its certificates say.

Two levels only: the authority signs leaves, and a leaf is either a device (client authentication only, one SPIFFE URI)
or the coordinator's server (server authentication only). Leaves are ECDSA P-256, because gRPC's TLS refuses Ed25519
leaves; the authority itself may be Ed25519. Everything in and out is PEM bytes with exactly one certificate, and time
is handed in. The helpers that read a certificate trust it as it is: call them on one that TLS or `verify_chain` has
checked.

Why our own path check: cryptography's verifier follows the rules of the public web, which forbid an Ed25519 authority.
Ours is narrower: one step, and no extension beyond those issued here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from holdfast.errors import FormatError, TrustError
from holdfast.trust.keys import ECDSA_P256, PrivateKey, PublicKey

Purpose = Literal["device", "server"]

DEVICE_LIFETIME_S = 86_400  # 24 h: revocation by not renewing takes effect within a day
SERVER_LIFETIME_S = 30 * 86_400  # the coordinator renews its own at half of it
AUTHORITY_LIFETIME_S = 3_650 * 86_400  # ten years: the lifetime of a field device
BACKDATE_S = 300  # a device's clock may be this far behind
MAX_CERTIFICATE_BYTES = 16_384  # a device certificate has 0.7 KB in PEM
MAX_HOSTS = 32

_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)  # characters of a SPIFFE path segment
_LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_DOMAIN = re.compile(rf"(?=.{{1,200}}\Z){_LABEL}(\.{_LABEL})*", re.ASCII)
_EKU: Final = {"device": ExtendedKeyUsageOID.CLIENT_AUTH, "server": ExtendedKeyUsageOID.SERVER_AUTH}
_LEAF_EXTENSIONS: Final = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    ExtensionOID.SUBJECT_KEY_IDENTIFIER,
}


@dataclass(frozen=True, slots=True)
class Authority:
    """What signs certificates: the authority's key and its own certificate (PEM)."""

    key: PrivateKey
    certificate: bytes


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """A request whose own signature holds: the sender has the private key."""

    device_id: str
    public_key: PublicKey


@dataclass(frozen=True, slots=True)
class VerifiedLeaf:
    """A leaf that an authority signed and that was valid at the asked time. `device_id` is empty for a server."""

    device_id: str
    trust_domain: str
    public_key: PublicKey
    serial: int
    not_after_utc_ns: int


def create_authority(key: PrivateKey, trust_domain: str, utc_ns: int) -> bytes:
    """The self-signed certificate of a new authority, valid ten years; the trust domain is its SPIFFE id.

    Raises:
        FormatError: `trust_domain` is not a DNS name in lower case.
    """
    _check_trust_domain(trust_domain)
    # the name carries the key: two authorities of one domain (rotation, recovery) never look alike
    name = _name(f"holdfast authority {key.public_key.key_id[:16]}")
    builder = _builder(name, name, key.public_key, utc_ns, AUTHORITY_LIFETIME_S)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(_names([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False)
    )
    return _sign(builder, key)


def create_csr(key: PrivateKey, device_id: str) -> bytes:
    """A certificate signing request (PKCS #10, PEM) of a device.

    Raises:
        FormatError: `device_id` is not allowed.
        TrustError: `key` is not P-256.
    """
    _check_device_id(device_id)
    _check_leaf_key(key.public_key)
    request = x509.CertificateSigningRequestBuilder().subject_name(_name(device_id)).sign(key.object, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_csr(csr: bytes) -> CertificateRequest:
    """Parse a request and check that its sender holds the key. Extensions it asks for are ignored.

    Raises:
        FormatError: it is not a request, or the device id in it is not allowed.
        TrustError: its signature does not hold, or the key is not P-256.
    """
    _check_size(csr, "certificate request")
    with _parsing("certificate request"):
        request = x509.load_pem_x509_csr(csr)
        names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        public_key = PublicKey.from_object(request.public_key())
        holds = request.is_signature_valid
        _check_bit_string(request.public_bytes(serialization.Encoding.DER), request.signature)
    if not holds:
        raise TrustError("the signature of the certificate request does not hold; the sender must hold the key")
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise FormatError(f"certificate request has {len(names)} common names, expected one: the device id")
    _check_device_id(names[0].value)
    _check_leaf_key(public_key)
    return CertificateRequest(names[0].value, public_key)


def issue_device(
    authority: Authority, csr: bytes, device_id: str, utc_ns: int, lifetime_s: int = DEVICE_LIFETIME_S
) -> bytes:
    """Certify the key of `csr` for `device_id`: client authentication only, SPIFFE URI, backdated five minutes.

    Whether that device may have it is the caller's decision; `device_id` is what the caller allowed.

    Raises:
        FormatError, TrustError: as `read_csr`; or the request is for another device; or the authority has expired.
    """
    request = read_csr(csr)
    if request.device_id != device_id:
        raise TrustError(f"certificate request is for device {request.device_id!r}, expected {device_id!r}")
    uri = f"spiffe://{trust_domain_of(authority.certificate)}/device/{device_id}"
    names = [x509.UniformResourceIdentifier(uri)]
    return _issue(authority, _Leaf("device", device_id, request.public_key, names), utc_ns, lifetime_s)


def issue_server(
    authority: Authority,
    public_key: PublicKey,
    hosts: Sequence[str],
    utc_ns: int,
    lifetime_s: int = SERVER_LIFETIME_S,
) -> bytes:
    """Certify the coordinator's TLS key: server authentication only.

    Names: `coordinator.<trust-domain>` (what agents always check, so that addresses may change), loopback, and `hosts`
    (DNS names or IP addresses).

    Raises:
        FormatError: a host is neither a DNS name nor an IP address, or there are too many.
        TrustError: the key is not P-256, or the authority has expired.
    """
    if len(hosts) > MAX_HOSTS:
        raise FormatError(f"server certificate for {len(hosts)} hosts, at most {MAX_HOSTS} fit")
    _check_leaf_key(public_key)
    own_name = server_name(trust_domain_of(authority.certificate))
    texts = dict.fromkeys([own_name, "localhost", "127.0.0.1", "::1", *(host.lower() for host in hosts)])
    names = [_host(text) for text in texts]
    return _issue(authority, _Leaf("server", "holdfast coordinator", public_key, names), utc_ns, lifetime_s)


def verify_chain(certificate: bytes, authorities: Iterable[bytes], purpose: Purpose, utc_ns: int) -> VerifiedLeaf:
    """Check that one of `authorities` signed `certificate` for `purpose`, and that both are valid at `utc_ns`.

    Does not know about revocation, and does not compare host names (TLS does).

    Raises:
        FormatError: something is not one PEM certificate.
        TrustError: not signed by them, expired, not yet valid, or of another profile than those issued here.
    """
    leaf = _load(certificate)
    issuer = _find_issuer(leaf, [_load(authority) for authority in authorities])
    for one, what in ((issuer, "authority"), (leaf, "certificate")):
        _check_time(one, what, utc_ns)
    with _parsing("certificate"):
        _check_authority_profile(issuer)
        _check_leaf_profile(leaf, purpose)
        public_key = PublicKey.from_object(leaf.public_key())
        trust_domain = _trust_domain(issuer)
        device_id = ""
        if purpose == "device":
            got_domain, device_id = _spiffe_device(leaf)
            if got_domain != trust_domain:
                raise TrustError(f"certificate is for trust domain {got_domain!r}, its authority for {trust_domain!r}")
    _check_leaf_key(public_key)
    return VerifiedLeaf(device_id, trust_domain, public_key, leaf.serial_number, _utc_ns(leaf.not_valid_after_utc))


def server_name(trust_domain: str) -> str:
    """The name that an agent checks in the coordinator's certificate, whatever address it dialled."""
    return f"coordinator.{trust_domain}"


def spki_sha256(certificate: bytes) -> str:
    """SHA-256 (hex) of the certificate's public key: what a join token pins, and the key's `key_id`."""
    return public_key_of(certificate).key_id


def public_key_of(certificate: bytes) -> PublicKey:
    """The certificate's public key."""
    loaded = _load(certificate)
    with _parsing("certificate"):
        return PublicKey.from_object(loaded.public_key())


def device_id_of(certificate: bytes) -> str:
    """The device id in the SPIFFE URI of a device certificate.

    Raises:
        FormatError: not one PEM certificate.
        TrustError: it names no device.
    """
    loaded = _load(certificate)
    with _parsing("certificate"):
        return _spiffe_device(loaded)[1]


def trust_domain_of(authority: bytes) -> str:
    """The trust domain of an authority's certificate."""
    loaded = _load(authority)
    with _parsing("certificate"):
        return _trust_domain(loaded)


def serial_of(certificate: bytes) -> int:
    """The serial number, for deny-lists."""
    return _load(certificate).serial_number


def validity_of(certificate: bytes) -> tuple[int, int]:
    """(not_before, not_after) in UTC nanoseconds."""
    loaded = _load(certificate)
    return _utc_ns(loaded.not_valid_before_utc), _utc_ns(loaded.not_valid_after_utc)


def not_after_utc_ns(certificate: bytes) -> int:
    """When the certificate expires, in UTC nanoseconds."""
    return validity_of(certificate)[1]


@dataclass(frozen=True, slots=True)
class _Leaf:
    purpose: Purpose
    common_name: str
    public_key: PublicKey
    names: Sequence[x509.GeneralName]


def _issue(authority: Authority, leaf: _Leaf, utc_ns: int, lifetime_s: int) -> bytes:
    issuer = _load(authority.certificate)
    if PublicKey.from_object(issuer.public_key()) != authority.key.public_key:
        raise TrustError("the authority's key is not the key in its certificate; restore the folder from one backup")
    _check_time(issuer, "authority", utc_ns)
    remaining_s = (_utc_ns(issuer.not_valid_after_utc) - utc_ns) // 1_000_000_000
    subject = _name(leaf.common_name)
    builder = _builder(subject, issuer.subject, leaf.public_key, utc_ns, min(lifetime_s, remaining_s))
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([_EKU[leaf.purpose]]), critical=False)
        .add_extension(_names(leaf.names), critical=False)
        .add_extension(_authority_key_identifier(authority.key.public_key), critical=False)
    )
    return _sign(builder, authority.key)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: PublicKey, utc_ns: int, lifetime_s: int
) -> x509.CertificateBuilder:
    now = datetime.fromtimestamp(utc_ns // 1_000_000_000, UTC)
    parsed = serialization.load_der_public_key(key.spki_der)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(parsed)  # type: ignore[arg-type]  # PublicKey holds only the two kinds that fit
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(seconds=BACKDATE_S))
        .not_valid_after(now + timedelta(seconds=lifetime_s))
        .add_extension(_subject_key_identifier(key), critical=False)
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> bytes:
    digest = None if isinstance(key.object, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key.object, digest).public_bytes(serialization.Encoding.PEM)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _names(names: Sequence[x509.GeneralName]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(names)


def _subject_key_identifier(key: PublicKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier(bytes.fromhex(key.key_id)[:20])  # RFC 7093 method 1: SHA-256 cut to 160 bits


def _authority_key_identifier(key: PublicKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_subject_key_identifier(key))


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _host(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if _DOMAIN.fullmatch(text) is None:
        raise FormatError(f"host {text!r} is neither an IP address nor a DNS name")
    return x509.DNSName(text)


def _load(pem: bytes) -> x509.Certificate:
    _check_size(pem, "certificate")
    with _parsing("certificate"):
        certificate = x509.load_pem_x509_certificate(pem)
        canonical = certificate.public_bytes(serialization.Encoding.PEM)
        _check_bit_string(certificate.public_bytes(serialization.Encoding.DER), certificate.signature)
    if canonical.strip() != pem.strip():
        # a second certificate behind a pinned one would become a trusted root of the TLS library
        raise FormatError("not exactly one PEM certificate; remove whatever else is in the file")
    return certificate


def _find_issuer(leaf: x509.Certificate, authorities: list[x509.Certificate]) -> x509.Certificate:
    for authority in authorities:
        with _parsing("certificate"):
            try:
                leaf.verify_directly_issued_by(authority)
            except (InvalidSignature, ValueError, TypeError):
                continue
            return authority
    raise TrustError(f"certificate is not signed by any of the {len(authorities)} trusted authorities")


def _check_time(certificate: x509.Certificate, what: str, utc_ns: int) -> None:
    if utc_ns < _utc_ns(certificate.not_valid_before_utc):
        start = certificate.not_valid_before_utc.isoformat()
        raise TrustError(f"{what} is not valid before {start}; check the clock of this machine")
    if utc_ns > _utc_ns(certificate.not_valid_after_utc):
        raise TrustError(f"{what} expired at {certificate.not_valid_after_utc.isoformat()}; renew it")


def _check_authority_profile(authority: x509.Certificate) -> None:
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    usage = authority.extensions.get_extension_for_class(x509.KeyUsage).value
    if not (constraints.ca and usage.key_cert_sign):
        raise TrustError("the signing certificate is not an authority")


def _check_leaf_profile(leaf: x509.Certificate, purpose: Purpose) -> None:
    surplus = {extension.oid for extension in leaf.extensions} - _LEAF_EXTENSIONS
    if surplus:
        raise TrustError(f"certificate has the unknown extension {min(oid.dotted_string for oid in surplus)}")
    if leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
        raise TrustError(f"certificate is an authority, expected a {purpose}")
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    if list(usages) != [_EKU[purpose]]:
        raise TrustError(f"certificate is not for a {purpose}: its extended key usage is another")


def _trust_domain(authority: x509.Certificate) -> str:
    uri = _only_uri(authority)
    domain = uri.removeprefix("spiffe://")
    if domain == uri or _DOMAIN.fullmatch(domain) is None:
        raise TrustError(f"authority has the id {uri[:100]!r}, expected spiffe://<trust-domain>")
    return domain


def _spiffe_device(leaf: x509.Certificate) -> tuple[str, str]:
    uri = _only_uri(leaf)
    domain, separator, device_id = uri.removeprefix("spiffe://").partition("/device/")
    well_formed = uri.startswith("spiffe://") and separator and _DOMAIN.fullmatch(domain)
    if not well_formed or _DEVICE_ID.fullmatch(device_id) is None:
        raise TrustError(f"certificate has the id {uri[:100]!r}, expected spiffe://<trust-domain>/device/<id>")
    return domain, device_id


def _only_uri(certificate: x509.Certificate) -> str:
    names = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise TrustError(f"certificate has {len(names)} alternative names, expected exactly one SPIFFE URI")
    return names[0].value


def _check_trust_domain(trust_domain: str) -> None:
    if _DOMAIN.fullmatch(trust_domain) is None:
        raise FormatError(f"trust domain {trust_domain!r} is not a DNS name in lower case, for example plant7.example")


def _check_device_id(device_id: str) -> None:
    if _DEVICE_ID.fullmatch(device_id) is None:
        raise FormatError(f"device id {device_id[:100]!r} is not allowed; use A-Z a-z 0-9 . _ -, 63 characters at most")


def _check_leaf_key(key: PublicKey) -> None:
    if key.algorithm != ECDSA_P256:
        raise TrustError(f"a TLS certificate needs an {ECDSA_P256} key, got {key.algorithm}; gRPC refuses other leaves")


def _check_size(data: bytes, what: str) -> None:
    if len(data) > MAX_CERTIFICATE_BYTES:
        raise FormatError(f"{what} has {len(data)} bytes, at most {MAX_CERTIFICATE_BYTES} are read")


def _check_bit_string(der: bytes, signature: bytes) -> None:
    # the byte before the signature says how many of its last bits are unused; parsers let other values than 0 through,
    # and one certificate would have several spellings
    if der[-len(signature) - 1] != 0:
        raise FormatError("the signature is not a whole number of bytes")


def _utc_ns(moment: datetime) -> int:
    return round(moment.timestamp()) * 1_000_000_000


@contextmanager
def _parsing(what: str) -> Iterator[None]:
    """Turn what cryptography raises over malformed input, often only when a field is looked at, into FormatError."""
    try:
        yield
    except (
        ValueError,
        TypeError,
        UnsupportedAlgorithm,
        x509.DuplicateExtension,
        x509.ExtensionNotFound,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise FormatError(f"{what} is malformed: {str(error)[:200]}") from error
