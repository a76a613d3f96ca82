"""Roots: the public keys that whoever verifies trusts, each for one role.

A root says "this is the ledger key", not only "this is a key": else an author could make a log of his own, sign its
checkpoint with the author key, and be believed as a ledger. Nothing vouches for another key: every key that signed
something in the file must be among the roots. Device keys are no roots; the ledger vouches for them by logging their
enrolment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from holdfast.errors import UsageError
from holdfast.evidence.layout import ROLES, ClaimedKey
from holdfast.trust.keys import PublicKey

_SPOKEN = re.compile(r"([a-z]+)(?:-([A-Za-z0-9._-]{1,100}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Root:
    """A trusted key. With a `name`, only under that name (a site's); without, under any."""

    role: str
    key: PublicKey
    name: str = ""


def role_of(spoken: str) -> tuple[str, str]:
    """(role, name) of what people write: `ledger`, `site`, `site-north`.

    Raises:
        UsageError: there is no such role.
    """
    found = _SPOKEN.fullmatch(spoken)
    if found is None or found[1] not in ROLES:
        raise UsageError(f"{spoken[:99]!r} is no role of a root key; use one of {', '.join(ROLES)}, or site-<name>")
    return found[1], found[2] or ""


def not_vouched(claimed: Iterable[ClaimedKey], roots: Sequence[Root]) -> tuple[ClaimedKey, ...]:
    """The claimed keys that are no roots in their role and name."""
    return tuple(each for each in claimed if not any(_is(each, root) for root in roots))


def _is(claimed: ClaimedKey, root: Root) -> bool:
    return (claimed.role, claimed.key) == (root.role, root.key) and root.name in ("", claimed.name)
