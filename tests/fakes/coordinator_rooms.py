"""The coordinator's rooms on a temporary folder, without listeners."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.fakes.clock import FakeClock
from tests.fakes.raw_device import RawDevice

from holdfast.clock import Clock
from holdfast.wire.enrolment import JoinToken
from holdfast_federation.enrolment.enrol import Enrolment, PublicKeys, Stores
from holdfast_federation.enrolment.tokens import Tokens
from holdfast_federation.server.build import Core, open_core
from holdfast_federation.server.settings import CoordinatorSettings
from holdfast_federation.server.state import Principals, create_state

TRUST_DOMAIN = "plant7.example"
DEVICE_ADDRESS = "127.0.0.1:7444"
# every address with port 0: the tests never meet each other
SETTINGS = CoordinatorSettings(
    enrolment_listen="127.0.0.1:0", device_listen="127.0.0.1:0", page_listen="127.0.0.1:0", check_in_s=1.0
)


@dataclass
class Rooms:
    """A core, its tokens and its enrolment."""

    core: Core
    tokens: Tokens
    enrolment: Enrolment
    clock: Clock

    def token(self, site: str = "north", name: str = "", ttl_s: int = 60) -> JoinToken:
        token = self.tokens.create(site, name, ttl_s)
        return JoinToken("127.0.0.1:7443", token.token_id, token.secret, self.core.authority.pin)

    def enrolled(self, site: str = "north") -> RawDevice:
        """A new device that has enrolled."""
        device, token = RawDevice(), self.token(site)
        nonce = self.enrolment.challenge(token.token_id)
        device.response = self.enrolment.enrol(device.enrol_request(token, nonce))
        device.certificate_pem = device.response.certificate_pem
        return device

    def close(self) -> None:
        self.core.database.close()


def make_rooms(folder: Path, clock: Clock | None = None) -> Rooms:
    clock = clock or FakeClock()
    state = create_state(folder / "state", TRUST_DOMAIN, Principals(), clock)
    core = open_core(state, SETTINGS, clock)
    tokens = Tokens(core.database, clock)
    keys = PublicKeys(*(core.authority.key(name).public_key for name in ("ledger", "run", "assignment")))
    stores = Stores(core.database, core.devices, tokens, core.ledger)
    return Rooms(core, tokens, Enrolment(stores, core.authority, keys, lambda: DEVICE_ADDRESS, clock), clock)
