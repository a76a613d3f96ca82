"""The certificate authority of the coordinator: its keys on disk, and the certificates that it issues.

The folder is a `KeyStore` with the keys `ca` (certificates), `ledger` (checkpoints and promises), `run` (offers and
candidate bundles), `assignment`, and `server` (the TLS key of the listeners), beside `ca.pem`. None of them can sign a
model, a policy or an approval: those keys belong to other people and are never in this folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import StateError
from holdfast.trust import certificates
from holdfast.trust.durable import write_atomic
from holdfast.trust.keys import ECDSA_P256, ED25519, Algorithm, PrivateKey, PublicKey
from holdfast.trust.keystore import KeyStore

CERTIFICATE_FILE = "ca.pem"
KEYS: dict[str, Algorithm] = {
    "ca": ECDSA_P256,
    "ledger": ED25519,
    "run": ED25519,
    "assignment": ED25519,
    "server": ECDSA_P256,
}


class CertificateAuthority:
    """Issues device and server certificates. Open one with `create` or `load`."""

    def __init__(self, authority: certificates.Authority, keys: KeyStore, clock: Clock) -> None:
        self._authority = authority
        self._keys = keys
        self._clock = clock
        self.trust_domain = certificates.trust_domain_of(authority.certificate)

    @classmethod
    def create(cls, folder: Path, trust_domain: str, clock: Clock) -> CertificateAuthority:
        """Make the keys and the certificate. Takes up again what an interrupted `create` left.

        Raises:
            StateError: the folder holds a finished authority already, or cannot be written.
            FormatError: `trust_domain` is not a DNS name in lower case.
        """
        path = folder / CERTIFICATE_FILE
        if path.exists():
            raise StateError(f"{folder} holds an authority already; choose another folder, or move this one away")
        keys = KeyStore(folder)
        for name, algorithm in KEYS.items():
            keys.load_or_create(name, algorithm)
        certificate = certificates.create_authority(keys.load("ca"), trust_domain, clock.utc_ns())
        # the certificate last: it marks the folder as complete
        write_atomic(path, certificate, 0o644)
        return cls.load(folder, clock)

    @classmethod
    def load(cls, folder: Path, clock: Clock) -> CertificateAuthority:
        """Open the authority in `folder`.

        Raises:
            StateError: there is none, or it cannot be read.
            TrustError: others on this machine could read its keys.
        """
        path = folder / CERTIFICATE_FILE
        try:
            certificate = path.read_bytes()
        except OSError as error:
            raise StateError(f"cannot read {path}: {error.strerror}; run: holdfast coordinator init STATE") from error
        keys = KeyStore(folder)
        return cls(certificates.Authority(keys.load("ca"), certificate), keys, clock)

    @property
    def certificate_pem(self) -> str:
        return self._authority.certificate.decode("ascii")

    @property
    def pin(self) -> str:
        """SHA-256 (hex) of the authority's public key, as a join token carries it."""
        return certificates.spki_sha256(self._authority.certificate)

    def key(self, name: str) -> PrivateKey:
        """One of the coordinator's own keys: ledger, run, assignment or server."""
        return self._keys.load(name)

    def issue_device(self, csr_pem: str, device_id: str) -> bytes:
        """A certificate of 24 h. Whether the device may have it was decided before.

        Raises:
            FormatError, TrustError: the request is malformed, for another device, or of another kind of key.
        """
        return certificates.issue_device(self._authority, csr_pem.encode(), device_id, self._clock.utc_ns())

    def issue_server(self, public_key: PublicKey, hosts: Sequence[str]) -> bytes:
        """A certificate for the coordinator's own listeners."""
        return certificates.issue_server(self._authority, public_key, hosts, self._clock.utc_ns())
