from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.errors import EnrolmentError, TrustError
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.messages import CheckInRequest
from holdfast_federation.database import Database
from holdfast_federation.devices.records import DeviceRecord, Devices
from holdfast_federation.devices.schema import SCHEMA


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "test.db", [SCHEMA])
    yield database
    database.close()


def record(device_id: str = "d1", site: str = "north") -> DeviceRecord:
    key = PrivateKey.generate(ED25519).public_key
    return DeviceRecord(device_id, site, f"name-{device_id}", key.spki_der, 1, "", "00" * 32, 5)


def add(database: Database, *records: DeviceRecord) -> Devices:
    devices = Devices(database)
    with database.write() as cx:
        for each in records:
            devices.add(cx, each)
    return devices


def test_device_is_found_as_it_was_added(database: Database) -> None:
    one = record()

    devices = add(database, one)

    assert devices.get("d1") == one
    assert devices.get("d1").report_key.spki_der == one.report_key_spki


def test_all_is_ordered_by_site_and_id(database: Database) -> None:
    devices = add(database, record("b", "south"), record("c", "north"), record("a", "south"))

    assert [each.device_id for each in devices.all()] == ["c", "a", "b"]


def test_unknown_device_is_refused(database: Database) -> None:
    devices = Devices(database)

    assert devices.find("nobody") is None
    with pytest.raises(TrustError, match="not known"):
        devices.get("nobody")


def test_same_id_with_another_key_is_refused(database: Database) -> None:
    devices = add(database, record("d1"))

    with pytest.raises(EnrolmentError, match="known already"), database.write() as cx:
        devices.add(cx, record("d1"))


def test_same_key_under_another_id_is_refused(database: Database) -> None:
    one = record("d1")
    devices = add(database, one)

    with pytest.raises(EnrolmentError, match="as 'd1'"), database.write() as cx:
        devices.add(cx, replace(one, device_id="d2"))


def test_revoked_device_stays_revoked(database: Database) -> None:
    devices = add(database, record())
    with database.write() as cx:
        first = devices.revoke(cx, "d1", "stolen", 10)
        second = devices.revoke(cx, "d1", "again", 20)

    found = devices.get("d1")

    assert (first, second) == (True, False)
    assert (found.is_revoked, found.revoked_utc_ns, found.revoked_reason) == (True, 10, "stolen")


def test_revoking_an_unknown_device_is_refused(database: Database) -> None:
    devices = Devices(database)

    with pytest.raises(TrustError, match="not known"), database.write() as cx:
        devices.revoke(cx, "nobody", "", 1)


def test_check_in_is_remembered(database: Database) -> None:
    devices = add(database, record())

    devices.seen("d1", CheckInRequest({"digits": "ab"}, "cd", 3, "0.1"), 99)

    found = devices.get("d1")
    assert (found.last_seen_utc_ns, found.active, found.policy_digest) == (99, {"digits": "ab"}, "cd")
