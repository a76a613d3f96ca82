"""The signed policy: a DSSE JSON document by the site's own key. Nobody else's signature makes a policy.

`verify_policy` is the only way to a `VerifiedPolicy`, and rooms that act on a policy ask for that type. What the
coordinator sends can never install or change one.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import FormatError, PolicyError, TrustError
from holdfast.policy.rules import Policy, format_time, from_payload, policy_digest, to_payload
from holdfast.trust.envelope import from_json, sign_envelope, to_json, verify_envelope
from holdfast.trust.keys import PublicKey, Signer
from holdfast.wire.limits import MAX_DOCUMENT_BYTES
from holdfast.wire.messages import POLICY_TYPE


@dataclass(frozen=True, slots=True)
class VerifiedPolicy:
    """A policy whose site signature holds. `document`: the exact DSSE JSON bytes; `digest`: hex, of the payload."""

    policy: Policy
    digest: str
    document: bytes
    key_id: str


def sign_policy(policy: Policy, site_key: Signer) -> bytes:
    """The signed document (DSSE JSON), ready to be carried to devices."""
    return to_json(sign_envelope(POLICY_TYPE, to_payload(policy), site_key))


def read_policy(document: bytes, site_key: PublicKey) -> VerifiedPolicy:
    """Check signature and form only: for showing a policy, or for loading the one that is installed already.

    Raises:
        PolicyError: unsigned, signed by another key, changed since, or not a policy this program understands.
    """
    if len(document) > MAX_DOCUMENT_BYTES:
        raise PolicyError(f"policy document has {len(document)} bytes; at most {MAX_DOCUMENT_BYTES} are read")
    try:
        verified = verify_envelope(from_json(document), POLICY_TYPE, [site_key])
    except FormatError as error:
        raise PolicyError(
            f"policy is not a signed document; sign it with: holdfast site sign-policy ({error})"
        ) from error
    except TrustError as error:
        raise PolicyError(f"policy is not signed by this site's pinned key {site_key.key_id[:16]}: {error}") from error
    policy = from_payload(verified.payload)
    return VerifiedPolicy(policy, policy_digest(verified.payload), document, verified.key_ids[0])


def verify_policy(
    document: bytes, site_key: PublicKey, *, now_utc_ns: int, installed_number: int | None
) -> VerifiedPolicy:
    """Check that a policy may be installed now.

    Args:
        installed_number: of the policy in force, None before the first; only a higher number may follow it.

    Raises:
        PolicyError: as `read_policy`; or it has expired, or its number is not higher.
    """
    verified = read_policy(document, site_key)
    policy = verified.policy
    if now_utc_ns >= policy.expires_utc_ns:
        expired = format_time(policy.expires_utc_ns)
        raise PolicyError(f"policy number {policy.number} expired at {expired}; the site has to sign a new one")
    if installed_number is not None and policy.number <= installed_number:
        raise PolicyError(
            f"policy number {policy.number} is not newer than the installed {installed_number}; "
            f"the site has to sign number {installed_number + 1} or later"
        )
    return verified
