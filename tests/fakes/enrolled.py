"""A device enrolled at a `FakeCoordinator`, and the keys its site gave it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.fakes.coordinator import FakeCoordinator

from holdfast.clock import Clock, SystemClock
from holdfast.identity.device import Device
from holdfast.identity.enrol import SiteKeys, enrol
from holdfast.identity.state import create_state
from holdfast.trust.keys import PrivateKey
from holdfast.wire.enrolment import JoinToken


def ed25519() -> PrivateKey:
    return PrivateKey.generate("ed25519")


@dataclass
class SitePrincipals:
    """The keys of a site, an author and an approver."""

    site: PrivateKey = field(default_factory=ed25519)
    author: PrivateKey = field(default_factory=lambda: PrivateKey.generate("ecdsa-p256"))
    approver: PrivateKey = field(default_factory=ed25519)

    @property
    def keys(self) -> SiteKeys:
        return SiteKeys(self.site.public_key, (self.author.public_key,), (self.approver.public_key,))


def enrol_device(
    coordinator: FakeCoordinator,
    path: Path,
    *,
    principals: SitePrincipals | None = None,
    token: JoinToken | None = None,
    clock: Clock | None = None,
) -> Device:
    keys = (principals or SitePrincipals()).keys
    return enrol(create_state(path), token or coordinator.token(), keys, clock or SystemClock())
