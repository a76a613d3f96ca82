"""Join tokens: made by the operator, good for one device, for a limited time.

A token is used up in the same transaction that adds the device, so that two devices racing with one token end as one
device. The secret has 256 random bits, so a plain SHA-256 of it is safe to store.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
from dataclasses import dataclass

from holdfast.clock import Clock
from holdfast.errors import EnrolmentError, OverloadedError, SettingsError
from holdfast_federation.database import Database

DEFAULT_TTL_S = 3_600  # long enough to walk to the device
MIN_TTL_S = 1
MAX_TTL_S = 30 * 86_400
MAX_OPEN_TOKENS = 100_000  # unused and not expired; more is a script gone wild
SECRET_BYTES = 32
LABEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}", re.ASCII)


@dataclass(frozen=True, slots=True)
class NewToken:
    """A token that was just made; the only time its secret is in clear."""

    token_id: str
    secret: str
    expires_utc_ns: int

    def __repr__(self) -> str:
        return f"NewToken(token_id={self.token_id!r}, secret=***)"


@dataclass(frozen=True, slots=True)
class TokenGrant:
    """What a token that was presented with its secret allows."""

    token_id: str
    site: str
    name: str


class Tokens:
    """The table of join tokens."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def create(self, site: str, name: str = "", ttl_s: int = DEFAULT_TTL_S) -> NewToken:
        """Make a token for one device of `site`; `name` may fix what the device is called.

        Raises:
            SettingsError: a label or the time is out of range.
            OverloadedError: too many open tokens.
        """
        check_label("site", site)
        if name:
            check_label("name", name)
        if not MIN_TTL_S <= ttl_s <= MAX_TTL_S:
            raise SettingsError(f"time to live is {ttl_s} s; allowed: {MIN_TTL_S} .. {MAX_TTL_S}")
        now_ns = self._clock.utc_ns()
        token = NewToken(secrets.token_hex(8), secrets.token_urlsafe(SECRET_BYTES), now_ns + ttl_s * 1_000_000_000)
        with self._database.write() as cx:
            condition = "used_utc_ns IS NULL AND expires_utc_ns > ?"
            open_tokens = cx.execute(f"SELECT count(*) FROM join_tokens WHERE {condition}", (now_ns,)).fetchone()[0]
            if open_tokens >= MAX_OPEN_TOKENS:
                raise OverloadedError(f"{open_tokens} join tokens are open already; wait until some expire")
            cx.execute(
                "INSERT INTO join_tokens (token_id, secret_sha256, site, name, created_utc_ns, expires_utc_ns)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (token.token_id, _hash(token.secret), site, name, now_ns, token.expires_utc_ns),
            )
        return token

    def check(self, token_id: str, secret: str) -> TokenGrant:
        """What the token allows; does not use it up.

        Raises:
            EnrolmentError: forged, expired, or used already.
        """
        with self._database.read() as cx:
            row = cx.execute("SELECT * FROM join_tokens WHERE token_id = ?", (token_id,)).fetchone()
        # one answer for "no such id" and "wrong secret", and the same work for both
        stored = bytes(row["secret_sha256"]) if row is not None else bytes(32)
        if not hmac.compare_digest(stored, _hash(secret)) or row is None:
            raise EnrolmentError("join token is not valid; make a new one with: holdfast coordinator token")
        _require_usable(row, self._clock.utc_ns())
        return TokenGrant(row["token_id"], row["site"], row["name"])

    def consume(self, cx: sqlite3.Connection, grant: TokenGrant, device_id: str) -> None:
        """Use the token up inside the caller's transaction.

        Raises:
            EnrolmentError: another device was faster, or it has expired meanwhile.
        """
        now_ns = self._clock.utc_ns()
        row = cx.execute("SELECT * FROM join_tokens WHERE token_id = ?", (grant.token_id,)).fetchone()
        _require_usable(row, now_ns)
        cx.execute(
            "UPDATE join_tokens SET used_utc_ns = ?, used_by = ? WHERE token_id = ?",
            (now_ns, device_id, grant.token_id),
        )


def check_label(what: str, text: str) -> None:
    """Refuse a site or device name that is not a short, plain label.

    Raises:
        SettingsError: it is not.
    """
    if LABEL.fullmatch(text) is None:
        raise SettingsError(f"{what} {text[:100]!r} is not allowed; use a-z 0-9 . _ -, 63 characters at most")


def _require_usable(row: sqlite3.Row, now_ns: int) -> None:
    if row["used_utc_ns"] is not None:
        raise EnrolmentError(f"join token {row['token_id']} was used already; each token is good for one device")
    if row["expires_utc_ns"] <= now_ns:
        raise EnrolmentError(f"join token {row['token_id']} has expired; make a new one: holdfast coordinator token")


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
