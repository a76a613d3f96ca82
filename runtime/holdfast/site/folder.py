"""The site's folder: its key (`site`, ed25519), the policy source `policy.toml`, and every policy it signed.

It belongs on a machine of the site, never on a device or at the coordinator. Signed policies are kept as
`policy-<number>.json`, so that the next number is known and what was in force when can be shown.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import StateError
from holdfast.policy.document import VerifiedPolicy, read_policy, sign_policy
from holdfast.site.template import policy_from_toml, read_source, render_template
from holdfast.trust.durable import create_atomic, make_folder
from holdfast.trust.keys import ED25519, PublicKey
from holdfast.trust.keystore import KeyStore

KEY_NAME = "site"
SOURCE_NAME = "policy.toml"
_SIGNED = re.compile(r"policy-(\d{1,9})\.json")


@dataclass(frozen=True, slots=True)
class SignedPolicy:
    """What `sign` wrote, and where."""

    path: Path
    policy: VerifiedPolicy


def init_site(folder: Path, site: str) -> PublicKey:
    """Make the site's key and a policy source to edit.

    Raises:
        StateError: the folder holds a site already, or cannot be written.
    """
    make_folder(folder, 0o700)
    key = KeyStore(folder).create(KEY_NAME, ED25519)
    source = folder / SOURCE_NAME
    if not source.exists():
        create_atomic(source, render_template(site, str(folder)).encode(), 0o644)
    return key.public_key


def sign(folder: Path, *, now_utc_ns: int, source: Path | None = None, number: int | None = None) -> SignedPolicy:
    """Sign the policy source with the site's key.

    Args:
        number: None = the next after the highest signed in this folder.

    Raises:
        StateError: no site here, or that number was signed before.
        PolicyError: the source is not a policy.
    """
    key = KeyStore(folder).load(KEY_NAME)
    chosen = last_number(folder) + 1 if number is None else number
    policy = policy_from_toml(read_source(source or folder / SOURCE_NAME), number=chosen, issued_utc_ns=now_utc_ns)
    document = sign_policy(policy, key)
    path = folder / f"policy-{chosen}.json"
    if path.exists():
        raise StateError(f"policy number {chosen} was signed before ({path}); devices would refuse a second one")
    create_atomic(path, document, 0o644)
    return SignedPolicy(path, read_policy(document, key.public_key))


def last_number(folder: Path) -> int:
    """The highest number signed in this folder; 0 before the first."""
    found = (_SIGNED.fullmatch(entry.name) for entry in folder.iterdir())
    return max((int(match.group(1)) for match in found if match), default=0)
