"""Registry and rollout on a real database, with devices in it; keys as in `tests.fakes.bundles`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.fakes.bundles import Keys
from tests.fakes.clock import FakeClock

from holdfast.bundle.verify import Trust
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast_federation.database import Database
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.ledger.log import Ledger
from holdfast_federation.registry.models import Registry
from holdfast_federation.rollout.assign import Rollout
from holdfast_federation.server.build import SCHEMAS


@dataclass
class RegistryRooms:
    database: Database
    ledger: Ledger
    devices: Devices
    registry: Registry
    rollout: Rollout
    clock: FakeClock
    extra: list[str]

    def add_device(self, device_id: str) -> None:
        spki = PrivateKey.generate(ED25519).public_key.spki_der
        record = DeviceRecord(device_id, "north", device_id, spki, 1, "", "0" * 64, self.clock.utc_ns())
        with self.database.write() as cx:
            self.devices.add(cx, record)

    def kinds(self) -> list[str]:
        """Kinds of all ledger entries, in order."""
        with self.database.read() as cx:
            return [row["kind"] for row in cx.execute("SELECT kind FROM ledger_entries ORDER BY position")]


def make_registry_rooms(folder: Path, keys: Keys, *device_ids: str) -> RegistryRooms:
    clock = FakeClock()
    database = Database(folder / "holdfast.db", SCHEMAS)
    ledger = Ledger(database, PrivateKey.generate(ED25519), "test/ledger", clock)
    trust = Trust((keys.author.public_key,), (keys.run.public_key,))
    registry = Registry(database, ledger, folder / "blobs", clock, trust, (keys.approver.public_key,))
    extra: list[str] = []
    rollout = Rollout(database, registry, ledger, keys.assignment, clock, lambda device_id: extra)
    rooms = RegistryRooms(database, ledger, Devices(database), registry, rollout, clock, extra)
    for device_id in device_ids:
        rooms.add_device(device_id)
    return rooms
