"""Who may do what on the serving port: pure decisions that every front asks for. No sockets, no certificates.

Rules: off loopback a port needs TLS and an allow-list of SPIFFE ids or bearer tokens, or an explicit "insecure"; where
ids or tokens are set they hold on every listener but the admin socket. Models are loaded and unloaded, and shared
memory is registered, on the admin socket only, and only if the server was told to offer it. Liveness is no secret.
Tokens are kept and compared as SHA-256 digests.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass

from holdfast.errors import AccessError, SettingsError, UnauthenticatedError, UsageError

MIN_TOKEN_CHARS = 16  # about 80 random bits in base 32: below that a token can be guessed over the network
MAX_TOKEN_CHARS = 4_096
SPIFFE = "spiffe://"
BEARER = "bearer "


class Action(enum.Enum):
    """What a call does, as far as rights go."""

    HEALTH = enum.auto()
    READ = enum.auto()  # metadata, configuration, statistics, metrics, the repository's index
    INFER = enum.auto()
    USE_REGION = enum.auto()  # a tensor in shared memory
    REGISTER_REGION = enum.auto()
    CONTROL_MODELS = enum.auto()


@dataclass(frozen=True, slots=True)
class Caller:
    """What is known of who calls. `spiffe_id` only from a verified client certificate; `token` as it was presented."""

    is_admin: bool = False
    is_local: bool = False
    spiffe_id: str = ""
    token: str = ""


@dataclass(frozen=True, slots=True)
class AccessRules:
    """What a server was told about access. Make one with `rules_of`."""

    allowed_ids: frozenset[str] = frozenset()
    token_digests: frozenset[bytes] = frozenset()
    model_control: bool = False
    shared_memory: bool = False

    @property
    def are_open(self) -> bool:
        """Whether anybody who reaches the port may infer; a front need not ask then."""
        return not self.allowed_ids and not self.token_digests


OPEN = AccessRules()


def rules_of(
    allowed_ids: Iterable[str] = (),
    tokens: Iterable[str] = (),
    *,
    model_control: bool = False,
    shared_memory: bool = False,
) -> AccessRules:
    """Rules from what a person wrote.

    Raises:
        SettingsError: an id that is no SPIFFE id, or a token that is too short or not plain text.
    """
    ids = frozenset(allowed_ids)
    for spiffe_id in ids:
        trust_domain, _, path = spiffe_id.removeprefix(SPIFFE).partition("/")
        if not spiffe_id.startswith(SPIFFE) or not trust_domain or not path:
            raise SettingsError(f"expected an allowed id like spiffe://example.org/client/7, got {spiffe_id[:100]!r}")
    digests = set()
    for token in tokens:
        if not MIN_TOKEN_CHARS <= len(token) <= MAX_TOKEN_CHARS or not token.isascii() or not token.isprintable():
            raise SettingsError(
                f"expected a token of {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} printable ASCII characters"
            )
        digests.add(_digest(token))
    return AccessRules(ids, frozenset(digests), model_control, shared_memory)


def check_exposure(rules: AccessRules, address: str, *, is_loopback: bool, has_tls: bool, insecure: bool) -> None:
    """Whether a port may be opened there.

    Raises:
        UsageError: other machines could reach it unencrypted or without access control, and nobody asked for that.
    """
    if rules.allowed_ids and not has_tls:
        raise UsageError("an allow-list of ids needs TLS: without it nobody can show an id")
    if is_loopback or insecure:
        return
    if not has_tls:
        raise UsageError(
            f"{address} can be reached from other machines, and this port has neither encryption nor access control; "
            "listen on 127.0.0.1, give a certificate and an allow-list or tokens, or add --insecure if the network "
            "itself is trusted"
        )
    if rules.are_open:
        raise UsageError(
            f"{address} can be reached from other machines, and anybody there could use it; give an allow-list of ids "
            "or tokens, or add --insecure if the network itself is trusted"
        )


def check_unix_exposure(rules: AccessRules, address: str) -> None:
    """Whether a public unix socket may be opened beside these rules.

    Raises:
        UsageError: nobody could use it: there is no TLS to show an id with.
    """
    if rules.allowed_ids and not rules.token_digests:
        raise UsageError(
            f"an allow-list of ids shuts everybody out of {address}: a unix socket has no TLS to show an id with; "
            "give tokens too, or use an admin socket"
        )


def check_call(rules: AccessRules, caller: Caller, action: Action) -> None:
    """Whether the caller may do this.

    Raises:
        UnauthenticatedError: it did not show who it is.
        AccessError: it may not, whoever it is.
    """
    if action is Action.CONTROL_MODELS:
        _require_admin(caller, "loading and unloading models", offered=rules.model_control)
    elif action is Action.REGISTER_REGION:
        _require_admin(caller, "registering shared memory", offered=rules.shared_memory)
    elif action is Action.USE_REGION and not (rules.shared_memory and (caller.is_admin or caller.is_local)):
        raise AccessError("shared memory is not offered here; send the tensor itself")
    if caller.is_admin or action is Action.HEALTH or rules.are_open:
        return
    if caller.spiffe_id and caller.spiffe_id in rules.allowed_ids:
        return
    if caller.token and is_known_token(rules, caller.token):
        return
    if caller.spiffe_id and not rules.token_digests:
        raise AccessError("this client's certificate is not on the allow-list")
    raise UnauthenticatedError("expected a client certificate on the allow-list, or a known bearer token")


def is_known_token(rules: AccessRules, token: str) -> bool:
    """Whether the token is one of ours; the time taken tells nothing about it but its length."""
    if len(token) > MAX_TOKEN_CHARS:
        return False
    import hmac  # not at the top, like hashlib: most servers have no tokens, and OpenSSL takes 4 MB

    digest = _digest(token)
    return any(hmac.compare_digest(digest, known) for known in rules.token_digests)


def bearer_token(authorization: str) -> str:
    """The token in an `Authorization` header; empty if there is none."""
    return authorization[len(BEARER) :].strip() if authorization[: len(BEARER)].lower() == BEARER else ""


def check_overrides(parameters: Iterable[str]) -> None:
    """Refuse what would bring a model or its settings in with the call: models come from the repository only.

    Raises:
        AccessError: naming the parameter.
    """
    for key in parameters:
        if key == "config" or key.startswith("file:"):
            kind = "config" if key == "config" else "file:"
            raise AccessError(
                f"parameter '{kind}': models are loaded from the repository as they lie there, never sent"
            )


def _require_admin(caller: Caller, what: str, *, offered: bool) -> None:
    if not offered:
        raise AccessError(f"{what} is not offered by this server")
    if not caller.is_admin:
        raise AccessError(f"{what} is offered on the admin socket only")


def _digest(token: str) -> bytes:
    import hashlib

    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
