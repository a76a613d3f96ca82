"""Assignments are numbered per device, only of approved bundles, and what devices are handed, they accept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes import bundles
from tests.fakes.bundles import DEVICE
from tests.fakes.registry_rooms import RegistryRooms, make_registry_rooms

from holdfast.bundle.approval import REJECT
from holdfast.bundle.verify import read_bundle
from holdfast.errors import TrustError, UnknownModelError, UsageError
from holdfast.models.activation import check_activation, check_order
from holdfast.trust.envelope import verify_envelope
from holdfast.wire.convert import from_bytes
from holdfast.wire.messages import ASSIGNMENT_TYPE, Assignment, AssignmentDelivery

KEYS = bundles.make_keys()
FIRST = bundles.author_bundle(KEYS)
CANDIDATE = bundles.candidate_bundle(KEYS, FIRST)
OTHER = bundles.author_bundle(KEYS, name="other")
DIGEST = read_bundle(FIRST).digest


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[RegistryRooms]:
    rooms = make_registry_rooms(tmp_path, KEYS, DEVICE, "device-2")
    yield rooms
    rooms.database.close()


def publish(rooms: RegistryRooms, *containers: bytes) -> None:
    for container in containers:
        rooms.registry.add(container)
        rooms.registry.approve(bundles.approval(KEYS.approver, container))


def assign(rooms: RegistryRooms, container: bytes, *device_ids: str) -> list[Assignment]:
    bundle = read_bundle(container)
    return rooms.rollout.assign(bundle.manifest.name, bundle.digest, device_ids or (DEVICE,))


def read(delivery: AssignmentDelivery) -> Assignment:
    verified = verify_envelope(delivery.assignment, ASSIGNMENT_TYPE, [KEYS.assignment.public_key])
    return from_bytes(Assignment, verified.payload)


def test_delivered_assignment_is_accepted_by_its_device(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)
    assign(rooms, FIRST)

    (delivery,) = rooms.rollout.deliveries(DEVICE, 0)

    trust, now = bundles.trust_of(KEYS), rooms.clock.utc_ns()
    order = check_order(delivery, trust, installed_number=0, now_utc_ns=now)
    container = rooms.registry.container(DIGEST)
    verified = check_activation(
        order, read_bundle(container), trust, now_utc_ns=now, ancestor_weights=lambda _: bundles.WEIGHT.tobytes()
    )
    assert verified.digest == DIGEST


def test_numbers_rise_per_device(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST, CANDIDATE)

    numbers = [
        {each.device_id: each.number for each in assign(rooms, container, *device_ids)}
        for container, device_ids in ((FIRST, (DEVICE,)), (CANDIDATE, (DEVICE, "device-2")), (FIRST, (DEVICE,)))
    ]

    assert numbers == [{DEVICE: 1}, {DEVICE: 2, "device-2": 1}, {DEVICE: 3}]
    assert rooms.kinds().count("assignment") == 4
    assert rooms.rollout.assigned()["device-2"] == {"scale": read_bundle(CANDIDATE).digest}


def test_device_is_handed_the_newest_of_each_model_in_order(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST, CANDIDATE, OTHER)
    for container in (FIRST, OTHER, CANDIDATE):
        assign(rooms, container)

    def handed(after: int) -> list[tuple[int, str]]:
        return [(read(each).number, read(each).model) for each in rooms.rollout.deliveries(DEVICE, after)]

    assert handed(0) == [(2, "other"), (3, "scale")]
    assert handed(2) == [(3, "scale")]
    assert handed(3) == []
    assert rooms.rollout.deliveries("device-2", 0) == ()


def test_delivery_carries_a_rejection_that_came_later(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)
    assign(rooms, FIRST)
    rooms.registry.approve(bundles.approval(KEYS.approver, FIRST, decision=REJECT))

    (delivery,) = rooms.rollout.deliveries(DEVICE, 0)

    with pytest.raises(TrustError, match="was rejected"):
        check_order(delivery, bundles.trust_of(KEYS), installed_number=0, now_utc_ns=rooms.clock.utc_ns())


def test_bundle_without_approval_is_not_assigned(rooms: RegistryRooms) -> None:
    rooms.registry.add(FIRST)

    with pytest.raises(TrustError, match="has no approval"):
        assign(rooms, FIRST)
    assert rooms.rollout.deliveries(DEVICE, 0) == ()


def test_rejected_bundle_is_not_assigned(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)
    rooms.registry.approve(bundles.approval(KEYS.approver, FIRST, decision=REJECT))

    with pytest.raises(TrustError, match="was rejected"):
        assign(rooms, FIRST)


def test_assigning_to_an_unknown_device_assigns_nothing(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)

    with pytest.raises(TrustError, match="is not known"):
        assign(rooms, FIRST, DEVICE, "device-9")
    assert rooms.rollout.deliveries(DEVICE, 0) == ()


def test_assigning_to_a_revoked_device_is_refused(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)
    with rooms.database.write() as cx:
        rooms.devices.revoke(cx, DEVICE, "stolen", 1)

    with pytest.raises(TrustError, match="is revoked"):
        assign(rooms, FIRST)


def test_assigning_nothing_or_to_nobody_is_refused(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)

    with pytest.raises(UsageError, match="no device was named"):
        rooms.rollout.assign("scale", DIGEST, ())
    with pytest.raises(UsageError, match="asked for 'other'"):
        rooms.rollout.assign("other", DIGEST, (DEVICE,))
    with pytest.raises(UnknownModelError):
        rooms.rollout.assign("scale", "f" * 64, (DEVICE,))


def test_device_may_fetch_what_it_was_assigned_and_its_ancestor_only(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST, CANDIDATE, OTHER)
    assign(rooms, CANDIDATE)

    allowed = [rooms.rollout.may_fetch(DEVICE, read_bundle(each).blob_sha256) for each in (FIRST, CANDIDATE, OTHER)]

    assert allowed == [True, True, False]
    assert not rooms.rollout.may_fetch("device-2", read_bundle(CANDIDATE).blob_sha256)


def test_device_may_fetch_the_base_of_an_open_round(rooms: RegistryRooms) -> None:
    publish(rooms, FIRST)
    blob = read_bundle(FIRST).blob_sha256
    before = rooms.rollout.may_fetch("device-2", blob)
    rooms.extra.append(DIGEST)

    assert (before, rooms.rollout.may_fetch("device-2", blob)) == (False, True)
    assert rooms.rollout.piece(blob, 0, 10).data == FIRST[:10]
