"""Nonces for proofs of possession: fresh, for one subject, usable once, for a short time.

A nonce vouches for itself (an HMAC over its subject, its time and randomness), so that handing them out costs no
memory and nobody can lock others out by asking for many. Only nonces that came back with a valid proof are remembered,
until they expire. A restart makes all of them void; the caller then asks for another.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
import threading

from holdfast.clock import Clock
from holdfast.errors import EnrolmentError, OverloadedError

NONCE_TTL_S = 60.0  # two round trips and two signatures, with a wide margin
MAX_USED = 16_384  # remembered within one NONCE_TTL_S
MAX_SUBJECT_CHARACTERS = 128  # a token id has 16, a device id at most 63

_RANDOM_BYTES = 16
_TIME = struct.Struct(">d")
_TAG_BYTES = 32
NONCE_BYTES = _RANDOM_BYTES + _TIME.size + _TAG_BYTES


class Challenges:
    """Makes and checks nonces. Thread-safe."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._used: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def create(self, subject: str) -> bytes:
        """A nonce for one token id or device id.

        Raises:
            EnrolmentError: the subject is empty or too long.
        """
        if not 1 <= len(subject) <= MAX_SUBJECT_CHARACTERS:
            raise EnrolmentError(f"challenge for a subject of {len(subject)} characters, expected a token or device id")
        body = secrets.token_bytes(_RANDOM_BYTES) + _TIME.pack(self._clock.monotonic_s())
        return body + self._tag(subject, body)

    def check(self, nonce: bytes, subject: str) -> None:
        """Return if the nonce was made here for `subject`, is fresh and was not used.

        Raises:
            EnrolmentError: it is not.
        """
        body, tag = nonce[:-_TAG_BYTES], nonce[-_TAG_BYTES:]
        if len(nonce) != NONCE_BYTES or not hmac.compare_digest(tag, self._tag(subject, body)):
            raise EnrolmentError("nonce was not given by this coordinator for this caller; ask for a new challenge")
        if self._clock.monotonic_s() >= _TIME.unpack(body[_RANDOM_BYTES:])[0] + NONCE_TTL_S:
            raise EnrolmentError(f"nonce is older than {NONCE_TTL_S:g} s; ask for a new challenge")
        with self._lock:
            if nonce in self._used:
                raise EnrolmentError("nonce was used already; ask for a new challenge")

    def use(self, nonce: bytes) -> None:
        """Remember that a checked nonce came with a valid proof, so that it is not taken again.

        Raises:
            EnrolmentError: another call was faster.
            OverloadedError: too many proofs within one lifetime of a nonce.
        """
        now_s = self._clock.monotonic_s()
        with self._lock:
            if len(self._used) >= MAX_USED:
                self._used = {key: until for key, until in self._used.items() if until > now_s}
            if len(self._used) >= MAX_USED:
                raise OverloadedError(f"{MAX_USED} enrolments within {NONCE_TTL_S:g} s; try again later")
            if nonce in self._used:
                raise EnrolmentError("nonce was used already; ask for a new challenge")
            self._used[nonce] = now_s + NONCE_TTL_S

    def _tag(self, subject: str, body: bytes) -> bytes:
        return hmac.digest(self._key, subject.encode("utf-8", "surrogatepass") + b"\x00" + body, hashlib.sha256)
