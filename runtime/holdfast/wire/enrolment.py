"""The join token as text, and the exact bytes that prove possession of a report key.

A token reads `hf1.<base64url of JSON>`; it carries where to enrol, an id, a secret, and the SHA-256 of the
authority's public key, so that first contact is authenticated both ways. The secret is never logged or printed again.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass

from holdfast.errors import EnrolmentError

TOKEN_PREFIX = "hf1."
MAX_TOKEN_CHARACTERS = 2_048  # a token is about 300
KEYS = {"address", "id", "secret", "authority_sha256"}
HEX_64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class JoinToken:
    """address: host:port of the enrolment listener; authority_sha256: hex, of the CA key's SubjectPublicKeyInfo."""

    address: str
    token_id: str
    secret: str
    authority_sha256: str

    def __repr__(self) -> str:
        return f"JoinToken(address={self.address!r}, token_id={self.token_id!r}, secret=***)"

    def to_text(self) -> str:
        fields = {
            "address": self.address,
            "id": self.token_id,
            "secret": self.secret,
            "authority_sha256": self.authority_sha256,
        }
        data = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
        return TOKEN_PREFIX + base64.urlsafe_b64encode(data).decode().rstrip("=")

    @classmethod
    def from_text(cls, text: str) -> JoinToken:
        """Parse a token.

        Raises:
            EnrolmentError: not a token, or one that was cut or changed in copying. The text is not repeated.
        """
        text = text.strip()
        wrong = EnrolmentError("this is not a join token (expected 'hf1.…'); make one with: holdfast coordinator token")
        if not text.startswith(TOKEN_PREFIX) or len(text) > MAX_TOKEN_CHARACTERS:
            raise wrong
        body = text.removeprefix(TOKEN_PREFIX)
        try:
            fields = json.loads(base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True))
        except (binascii.Error, ValueError, RecursionError) as error:
            raise wrong from error
        if not isinstance(fields, dict) or set(fields) != KEYS or not all(isinstance(v, str) for v in fields.values()):
            raise wrong
        if not HEX_64.fullmatch(fields["authority_sha256"]):
            raise wrong
        return cls(fields["address"], fields["id"], fields["secret"], fields["authority_sha256"])


def enrolment_proof_message(
    *, token_id: str, csr_pem: str, report_key_spki: bytes, flower_public_key: str, nonce: bytes
) -> bytes:
    """What the report key signs to show that it is held by who asks for the certificate."""
    return _bound(
        b"holdfast enrolment v1",
        token_id.encode(),
        csr_pem.encode(),
        report_key_spki,
        flower_public_key.encode(),
        nonce,
    )


def renewal_proof_message(*, device_id: str, csr_pem: str, nonce: bytes) -> bytes:
    """What the report key signs to renew a certificate, also after the old one has expired."""
    return _bound(b"holdfast renewal v1", device_id.encode(), csr_pem.encode(), nonce)


def _bound(*parts: bytes) -> bytes:
    """Hash each part first, so that no two lists of parts make the same message."""
    return b"".join(hashlib.sha256(part).digest() for part in parts)
