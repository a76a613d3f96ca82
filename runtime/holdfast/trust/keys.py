"""Signing keys: Ed25519 and ECDSA P-256, and nothing else.

The algorithm belongs to the key, never to the message: a verifier picks the key, and the key knows how it signs. A key
is named by the SHA-256 of its SubjectPublicKeyInfo, in one canonical encoding, so that one key has one name.
`Signer` is what the rest of the house is handed: a file key today, a key in a TPM later.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from holdfast.errors import FormatError, TrustError

Algorithm = Literal["ed25519", "ecdsa-p256"]
PublicKeyObject = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
PrivateKeyObject = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey

ED25519: Final = "ed25519"
ECDSA_P256: Final = "ecdsa-p256"
MAX_KEY_BYTES = 4_096  # a P-256 key in PEM is 250 bytes; more than this is not one of our keys
MAX_SIGNATURE_BYTES = 128  # Ed25519 is 64, P-256 in DER at most 72

_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256())


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key. Equal when the key is the same. Make one with `from_pem`, `from_spki_der` or `from_object`."""

    algorithm: Algorithm
    spki_der: bytes = field(repr=False)
    key_id: str
    _object: PublicKeyObject = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, text: str) -> PublicKey:
        """Read a PEM `PUBLIC KEY`.

        Raises:
            FormatError: it is not a PEM public key.
            TrustError: it is a key of another algorithm.
        """
        if len(text) > MAX_KEY_BYTES:
            raise FormatError(f"public key has {len(text)} characters, at most {MAX_KEY_BYTES} are read")
        try:
            parsed = serialization.load_pem_public_key(text.encode())
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FormatError("not a PEM public key; expected a block 'BEGIN PUBLIC KEY'") from error
        return cls.from_object(parsed)

    @classmethod
    def from_spki_der(cls, der: bytes) -> PublicKey:
        """Read a DER SubjectPublicKeyInfo; any encoding but the canonical one is refused.

        Raises:
            FormatError: it is not a DER public key, or not in its one canonical form.
            TrustError: it is a key of another algorithm.
        """
        if len(der) > MAX_KEY_BYTES:
            raise FormatError(f"public key has {len(der)} bytes, at most {MAX_KEY_BYTES} are read")
        try:
            parsed = serialization.load_der_public_key(der)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FormatError("not a DER public key; expected a SubjectPublicKeyInfo") from error
        key = cls.from_object(parsed)
        if key.spki_der != der:
            # else one key would have several names, and a revoked name could come back under another
            raise FormatError("public key is not in its canonical DER form; write the point uncompressed")
        return key

    @classmethod
    def from_object(cls, parsed: object) -> PublicKey:
        """Wrap a key of the `cryptography` library, for example that of a certificate.

        Raises:
            TrustError: it is neither Ed25519 nor ECDSA P-256.
        """
        if not isinstance(parsed, PublicKeyObject):
            raise TrustError(f"key type {type(parsed).__name__} is not used here; expected {ED25519} or {ECDSA_P256}")
        der = parsed.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        return cls(_algorithm_of(parsed), der, hashlib.sha256(der).hexdigest(), parsed)

    def verify(self, signature: bytes, message: bytes) -> None:
        """Return if `signature` over `message` was made with this key's private half.

        Raises:
            TrustError: it was not, or it is not a signature at all.
        """
        try:
            if isinstance(self._object, ed25519.Ed25519PublicKey):
                self._object.verify(signature, message)
            else:
                self._object.verify(signature, message, _ECDSA_SHA256)
        except InvalidSignature as error:
            raise TrustError(f"signature by key {self.key_id[:16]} does not hold; bytes or key differ") from error

    def to_pem(self) -> str:
        """The key as a PEM `PUBLIC KEY`, ending with a newline."""
        encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self._object.public_bytes(encoding, form).decode("ascii")


class Signer(Protocol):
    """Something that signs with one key, without showing it."""

    @property
    def public_key(self) -> PublicKey:
        """The public half."""

    def sign(self, message: bytes) -> bytes:
        """Sign the message itself (not a digest of it)."""


class PrivateKey:
    """A private key in memory; implements `Signer`. Never printed, compared or copied."""

    __slots__ = ("_object", "_public_key")

    def __init__(self, key: PrivateKeyObject) -> None:
        self._object = key
        self._public_key = PublicKey.from_object(key.public_key())

    @classmethod
    def generate(cls, algorithm: Algorithm) -> PrivateKey:
        """Make a new key from the operating system's randomness."""
        if algorithm == ED25519:
            return cls(ed25519.Ed25519PrivateKey.generate())
        if algorithm == ECDSA_P256:
            return cls(ec.generate_private_key(ec.SECP256R1()))
        raise TrustError(f"key algorithm {algorithm!r} is not used here; expected {ED25519} or {ECDSA_P256}")

    @classmethod
    def from_pem(cls, pem: bytes) -> PrivateKey:
        """Read an unencrypted PEM private key.

        Raises:
            FormatError: it is not one.
            TrustError: it is a key of another algorithm.
        """
        if len(pem) > MAX_KEY_BYTES:
            raise FormatError(f"private key has {len(pem)} bytes, at most {MAX_KEY_BYTES} are read")
        try:
            parsed = serialization.load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise FormatError("not an unencrypted PEM private key; expected a block 'BEGIN PRIVATE KEY'") from error
        if not isinstance(parsed, PrivateKeyObject):
            raise TrustError(f"key type {type(parsed).__name__} is not used here; expected {ED25519} or {ECDSA_P256}")
        return cls(parsed)

    @property
    def public_key(self) -> PublicKey:
        return self._public_key

    @property
    def object(self) -> PrivateKeyObject:
        """The key as the `cryptography` library has it, for signing certificates and for TLS."""
        return self._object

    def sign(self, message: bytes) -> bytes:
        """Ed25519 (64 bytes, RFC 8032) or ECDSA with SHA-256 (DER)."""
        if isinstance(self._object, ed25519.Ed25519PrivateKey):
            return self._object.sign(message)
        return self._object.sign(message, _ECDSA_SHA256)

    def to_pem(self) -> bytes:
        """The secret itself, PKCS #8, unencrypted: only for a `KeyStore` and for TLS libraries."""
        encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return self._object.private_bytes(encoding, form, serialization.NoEncryption())

    def __repr__(self) -> str:
        return f"PrivateKey({self._public_key.algorithm}, key_id={self._public_key.key_id[:16]})"


def _algorithm_of(key: PublicKeyObject) -> Algorithm:
    if isinstance(key, ed25519.Ed25519PublicKey):
        return ED25519
    if not isinstance(key.curve, ec.SECP256R1):
        raise TrustError(f"elliptic curve {key.curve.name} is not used here; expected P-256 (secp256r1)")
    return ECDSA_P256
