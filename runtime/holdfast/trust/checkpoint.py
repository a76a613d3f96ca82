"""Checkpoints of a log as text: C2SP tlog-checkpoint in a C2SP signed note, Ed25519.

    <origin>
    <size in decimal>
    <root hash in base64>

    — <key name> <base64 of: key hash (4 bytes) || Ed25519 signature of the text above the blank line>

Only this first form is written and read: no extension lines, one spelling per number. A note may carry more
signatures, of witnesses; `verify_checkpoint` checks the one asked for and ignores lines by other names.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass

from holdfast.errors import FormatError, TrustError
from holdfast.trust.keys import ED25519, PublicKey, Signer
from holdfast.trust.merkle import HASH_BYTES, MAX_SIZE

MAX_NOTE_BYTES = 16_384  # 16 KiB: a hundred witnesses
MAX_NOTE_SIGNATURES = 100

_ED25519_TYPE = b"\x01"  # signed note: signature type identifier of Ed25519
_NAME = re.compile(r"[^\s+\x00-\x1f\x7f\ud800-\udfff]{1,200}")  # signed note: no white space, no plus
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)
_DASH = "— "


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state of a log: its name, how many leaves it has, and their root."""

    origin: str
    size: int
    root: bytes


def note_key_hash(name: str, key: PublicKey) -> bytes:
    """The 4-byte key hash of a signed note: SHA-256(name || LF || 0x01 || Ed25519 public key), cut.

    Raises:
        TrustError: the key is not Ed25519.
    """
    raw = _raw_ed25519(key)
    return hashlib.sha256(name.encode() + b"\n" + _ED25519_TYPE + raw).digest()[:4]


def verifier_key(name: str, key: PublicKey) -> str:
    """The key as other note tools take it: `<name>+<key hash in hex>+<base64 of type and key>`."""
    encoded = base64.b64encode(_ED25519_TYPE + _raw_ed25519(key)).decode("ascii")
    return f"{name}+{note_key_hash(name, key).hex()}+{encoded}"


def sign_checkpoint(checkpoint: Checkpoint, name: str, key: Signer) -> str:
    """The checkpoint as a note signed by `key` under `name`.

    Raises:
        FormatError: the origin or name is empty or has white space or a plus, or size or root are out of range.
        TrustError: the key is not Ed25519.
    """
    _check_name(name, "key name")
    text = _body(checkpoint)
    signature = base64.b64encode(note_key_hash(name, key.public_key) + key.sign(text.encode())).decode("ascii")
    return f"{text}\n{_DASH}{name} {signature}\n"


def verify_checkpoint(text: str, name: str, public_key: PublicKey) -> Checkpoint:
    """Check the signature of `public_key` under `name` and read the checkpoint.

    Raises:
        FormatError: not a checkpoint note in its canonical form.
        TrustError: not signed by that key under that name, or the signature does not hold.
    """
    body, signatures = _split_note(text)
    wanted = note_key_hash(name, public_key)
    found = [raw[4:] for signer, raw in signatures if signer == name and raw[:4] == wanted]
    if len(found) != 1:
        raise TrustError(f"checkpoint has {len(found)} signatures by {name!r} with the expected key, expected one")
    public_key.verify(found[0], body.encode())
    return _parse_body(body)


def _body(checkpoint: Checkpoint) -> str:
    _check_name(checkpoint.origin, "origin")
    if not 0 <= checkpoint.size <= MAX_SIZE:
        raise FormatError(f"checkpoint size {checkpoint.size} is out of range, expected 0 to {MAX_SIZE}")
    if len(checkpoint.root) != HASH_BYTES:
        raise FormatError(f"checkpoint root has {len(checkpoint.root)} bytes, expected {HASH_BYTES}")
    return f"{checkpoint.origin}\n{checkpoint.size}\n{base64.b64encode(checkpoint.root).decode('ascii')}\n"


def _parse_body(body: str) -> Checkpoint:
    lines = body.split("\n")
    if len(lines) != 4 or lines[3]:
        raise FormatError(f"checkpoint has {len(lines) - 1} lines, expected origin, size and root")
    origin, size, root = lines[:3]
    if _SIZE.fullmatch(size) is None:
        raise FormatError(f"checkpoint size {size[:30]!r} is not a decimal number without leading zeros")
    checkpoint = Checkpoint(origin, int(size), _decode(root, "root"))
    if _body(checkpoint) != body:
        raise FormatError("checkpoint is not in its canonical form")
    return checkpoint


def _split_note(text: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The signed text (with its last newline) and the signature lines as (name, key hash || signature)."""
    if len(text) > MAX_NOTE_BYTES:
        raise FormatError(f"checkpoint has {len(text)} characters, at most {MAX_NOTE_BYTES} are read")
    if any((ord(char) < 0x20 and char != "\n") or 0xD800 <= ord(char) <= 0xDFFF for char in text):
        raise FormatError("checkpoint holds control characters or is not UTF-8")
    body, separator, tail = text.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise FormatError("checkpoint has no signature block: a blank line, then lines that end in a newline")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_NOTE_SIGNATURES:
        raise FormatError(f"checkpoint has {len(lines)} signatures, at most {MAX_NOTE_SIGNATURES} are read")
    return body + "\n", [_signature_line(line) for line in lines]


def _signature_line(line: str) -> tuple[str, bytes]:
    name, separator, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not separator or _NAME.fullmatch(name) is None:
        raise FormatError(f"signature line {line[:40]!r} is not '— <name> <base64>'")
    raw = _decode(encoded, "signature")
    if len(raw) < 5:
        raise FormatError(f"signature of {name!r} has {len(raw)} bytes, expected a key hash and a signature")
    return name, raw


def _decode(text: str, what: str) -> bytes:
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise FormatError(f"checkpoint {what} is not base64: {error}") from error
    if base64.b64encode(decoded).decode("ascii") != text:
        raise FormatError(f"checkpoint {what} is not in its canonical base64 form")
    return decoded


def _check_name(name: str, what: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise FormatError(f"checkpoint {what} {name[:100]!r} is not allowed; no white space and no plus, 1 to 200 long")


def _raw_ed25519(key: PublicKey) -> bytes:
    if key.algorithm != ED25519:
        raise TrustError(f"checkpoints are signed with {ED25519}, got a key of {key.algorithm}")
    # the last 32 bytes of an Ed25519 SubjectPublicKeyInfo are the key itself (RFC 8410 section 4)
    return key.spki_der[-32:]
