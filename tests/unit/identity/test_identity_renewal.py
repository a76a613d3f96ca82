"""A certificate is renewed at half of its life, also after it has expired, and moves the link over."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.enrolled import enrol_device

from holdfast.errors import EnrolmentError
from holdfast.identity.renewal import Renewal
from holdfast.lifecycle import Stop
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.channel import ClientIdentity


class RecordingLink:
    """Remembers the certificates it was moved to; asks to stop after the first."""

    def __init__(self, stop: Stop) -> None:
        self.identities: list[ClientIdentity] = []
        self._stop = stop

    def renew(self, identity: ClientIdentity) -> None:
        self.identities.append(identity)
        self._stop.set()


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    with FakeCoordinator() as running:
        yield running


def make_clock(coordinator: FakeCoordinator, ahead_s: float) -> FakeClock:
    clock = FakeClock(coordinator.clock.utc_ns())
    clock.advance(ahead_s)
    return clock


def test_renewal_is_due_at_half_life_with_jitter(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    device = enrol_device(coordinator, tmp_path / "state")
    not_before, not_after = device.certificate_validity
    life_s = (not_after - not_before) / 1e9

    dues = []
    for seed in range(50):
        clock = FakeClock(not_before)
        dues.append(Renewal(device, RecordingLink(Stop()), ByteLedger(), clock, random.Random(seed)).due_in_s())

    assert min(dues) >= 0.45 * life_s
    assert max(dues) <= 0.55 * life_s
    assert len(set(dues)) > 40


def test_an_expired_certificate_is_renewed_by_proof_of_possession(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    coordinator.lifetime_s = 60
    device = enrol_device(coordinator, tmp_path / "state")
    coordinator.lifetime_s = 86_400
    before = device.certificate
    clock = make_clock(coordinator, ahead_s=90 * 86_400.0)  # this device was away for three months
    stop = Stop(clock)
    link = RecordingLink(stop)

    Renewal(device, link, ByteLedger(), clock, random.Random(1)).run(stop)

    assert device.certificate != before
    assert link.identities == [device.client_identity]


def test_a_revoked_device_is_refused_and_keeps_its_old_certificate(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    device = enrol_device(coordinator, tmp_path / "state")
    coordinator.revoked.add(device.record.device_id)
    before = device.certificate
    renewal = Renewal(device, RecordingLink(Stop()), ByteLedger(), coordinator.clock, random.Random(1))

    with pytest.raises(EnrolmentError, match="revoked"):
        renewal.renew()

    assert device.certificate == before
