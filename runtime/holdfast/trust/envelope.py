"""Signed bytes: the DSSE envelope (Dead Simple Signing Envelope, version 1.0.2).

Sign bytes, store bytes, verify bytes, then parse. What is signed is the pre-authentication encoding over the payload
type and the exact payload, so an approval can never be replayed as a policy. `Envelope` is unverified; only
`verify_envelope` makes a `Verified`, so that a function which needs checked bytes can say so in its type.

The JSON form is DSSE's own and any DSSE reader takes it; `from_json` reads only the one canonical way of writing it
(as `to_json` does), so that no byte of a stored file can change unnoticed.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.errors import FormatError, TrustError
from holdfast.trust.keys import MAX_SIGNATURE_BYTES, PublicKey, Signer

MAX_JSON_BYTES = 4_194_304  # 4 MiB: the manifest of a bundle of ten thousand files, with margin
MAX_SIGNATURES = 16  # a committee; each one costs a verification
MAX_TYPE_CHARS = 256
MAX_KEY_ID_CHARS = 128  # ours are 64 hex digits; other tools may sign beside us


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope. The key id is a hint for finding the key and is not itself signed."""

    key_id: str
    signature: bytes


@dataclass(frozen=True, slots=True)
class Envelope:
    """Bytes with signatures that nobody has checked yet."""

    payload_type: str
    payload: bytes
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class Verified:
    """Payload bytes whose signatures hold, and the ids of the keys (sorted) that signed them."""

    payload: bytes
    key_ids: tuple[str, ...]


def pae(payload_type: str, payload: bytes) -> bytes:
    """The bytes that are signed: DSSE pre-authentication encoding, `DSSEv1 len type len payload`."""
    type_bytes = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(type_bytes), type_bytes, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, signer: Signer, *more: Signer) -> Envelope:
    """Sign `payload` with one or more keys."""
    message = pae(payload_type, payload)
    signers = (signer, *more)
    signatures = tuple(Signature(each.public_key.key_id, each.sign(message)) for each in signers)
    return Envelope(payload_type, payload, signatures)


def verify_envelope(
    envelope: Envelope, expected_type: str, keys: Iterable[PublicKey], *, threshold: int = 1
) -> Verified:
    """Check that at least `threshold` different keys of `keys` signed this payload as an `expected_type`.

    Signatures by keys that are not in `keys` are skipped, not trusted. A signature that names one of `keys` and does
    not hold is refused even where enough others hold: something was changed.

    Raises:
        TrustError: another payload type, too few signatures, too many, or one that does not hold.
    """
    if threshold < 1:
        raise RuntimeError(f"a threshold of {threshold} signatures would trust everything")
    if envelope.payload_type != expected_type:
        raise TrustError(f"envelope holds {envelope.payload_type!r}, expected {expected_type!r}")
    if len(envelope.signatures) > MAX_SIGNATURES:
        raise TrustError(f"envelope has {len(envelope.signatures)} signatures, at most {MAX_SIGNATURES} are checked")
    by_id = {key.key_id: key for key in keys}
    message = pae(envelope.payload_type, envelope.payload)
    signed_by: set[str] = set()
    for signature in envelope.signatures:
        key = by_id.get(signature.key_id)
        if key is None:
            continue
        key.verify(signature.signature, message)
        signed_by.add(key.key_id)  # a set: one key signing twice still counts once
    if len(signed_by) < threshold:
        got = ", ".join(sorted(signature.key_id[:16] for signature in envelope.signatures)) or "none"
        raise TrustError(
            f"{expected_type} is signed by {len(signed_by)} of the {len(by_id)} trusted keys, "
            f"expected at least {threshold}; signatures present: {got}"
        )
    return Verified(envelope.payload, tuple(sorted(signed_by)))


def to_json(envelope: Envelope) -> bytes:
    """The envelope as canonical DSSE JSON: keys sorted, no white space, standard base64, ASCII."""
    document = {
        "payload": _encode(envelope.payload),
        "payloadType": envelope.payload_type,
        "signatures": [{"keyid": each.key_id, "sig": _encode(each.signature)} for each in envelope.signatures],
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def from_json(data: bytes) -> Envelope:
    """Read what `to_json` wrote. Checks no signature.

    Raises:
        FormatError: too large, not JSON, a field missing or unknown, or not in the canonical form.
    """
    if len(data) > MAX_JSON_BYTES:
        raise FormatError(f"envelope has {len(data)} bytes, at most {MAX_JSON_BYTES} are read")
    try:
        document: object = json.loads(data.decode("ascii"))
    except (ValueError, RecursionError) as error:
        raise FormatError("envelope is not ASCII JSON") from error
    fields = _fields(document, {"payload", "payloadType", "signatures"}, "envelope")
    listed = fields["signatures"]
    if not isinstance(listed, list) or not 1 <= len(listed) <= MAX_SIGNATURES:
        raise FormatError(f"envelope field 'signatures' is not a list of 1 to {MAX_SIGNATURES} signatures")
    envelope = Envelope(
        _text(fields["payloadType"], "payloadType", MAX_TYPE_CHARS),
        _decode(fields["payload"], "payload", MAX_JSON_BYTES),
        tuple(_signature(item) for item in listed),
    )
    if to_json(envelope) != data:
        raise FormatError("envelope is not in its canonical form: keys sorted, no white space, standard base64")
    return envelope


def _signature(item: object) -> Signature:
    fields = _fields(item, {"keyid", "sig"}, "signature")
    key_id = _text(fields["keyid"], "keyid", MAX_KEY_ID_CHARS)
    return Signature(key_id, _decode(fields["sig"], "sig", MAX_SIGNATURE_BYTES))


def _fields(value: object, expected: set[str], what: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != expected:
        got = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{what} has {str(got)[:200]}, expected exactly the fields {sorted(expected)}")
    return value


def _text(value: object, name: str, max_chars: int) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= max_chars:
        raise FormatError(f"envelope field {name!r} is not a text of 1 to {max_chars} characters")
    if not value.isprintable():
        raise FormatError(f"envelope field {name!r} holds characters that cannot be printed")
    return value


def _decode(value: object, name: str, max_bytes: int) -> bytes:
    if not isinstance(value, str):
        raise FormatError(f"envelope field {name!r} is not base64 text")
    try:
        decoded = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"envelope field {name!r} is not base64: {error}") from error
    if len(decoded) > max_bytes:
        raise FormatError(f"envelope field {name!r} has {len(decoded)} bytes, at most {max_bytes} are read")
    return decoded


def _encode(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
