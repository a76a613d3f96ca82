"""The device's own rooms against a real coordinator: enrol by token, report from the journal, renew, be revoked."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.coordinator_rooms import SETTINGS, TRUST_DOMAIN
from tests.fakes.enrolled import SitePrincipals
from tests.fakes.raw_device import window
from tests.fakes.shifted_clock import ShiftedClock

from holdfast.errors import EnrolmentError, HoldfastError
from holdfast.identity.device import Device
from holdfast.identity.enrol import enrol
from holdfast.identity.renewal import renew_certificate
from holdfast.identity.state import create_state as create_device_state
from holdfast.identity.state import open_state
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.client import Endpoint, Link
from holdfast.outbox.checkpoints import CheckpointMemory
from holdfast.outbox.journal import Journal
from holdfast.outbox.sender import Recipient, Sender
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.enrolment import JoinToken
from holdfast.wire.messages import CheckInRequest
from holdfast_federation.admin.client import AdminClient
from holdfast_federation.server.build import Coordinator
from holdfast_federation.server.state import Principals, create_state


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def admin(tmp_path: Path, clock: ShiftedClock) -> Iterator[AdminClient]:
    state = create_state(tmp_path / "coordinator", TRUST_DOMAIN, Principals(), clock)
    coordinator = Coordinator(state.path, SETTINGS, clock)
    coordinator.start()
    yield AdminClient(state.path)
    coordinator.stop()


def new_token(admin: AdminClient) -> JoinToken:
    return JoinToken.from_text(str(admin.post("/v1/tokens", {"site": "north", "name": "ward-3"})["token"]))


def enrolled(admin: AdminClient, folder: Path, clock: ShiftedClock) -> Device:
    return enrol(create_device_state(folder), new_token(admin), SitePrincipals().keys, clock)


def open_link(device: Device, ledger: ByteLedger, clock: ShiftedClock) -> Link:
    endpoint = Endpoint(device.record.device_address, device.authority)
    return Link(endpoint, device.client_identity, ledger, clock)


def test_device_enrols_reports_and_is_revoked(admin: AdminClient, tmp_path: Path, clock: ShiftedClock) -> None:
    device = enrolled(admin, tmp_path / "device", clock)
    device_state = open_state(tmp_path / "device")
    bytes_out = ByteLedger()
    link = open_link(device, bytes_out, clock)
    record = device.record
    journal = Journal(tmp_path / "outbox.db", device.report_key, record.device_id, record.key_epoch, clock)
    sender = Sender(
        journal,
        link,
        Recipient(device.pins.ledger, record.device_id),
        CheckpointMemory(device_state.checkpoints, device.pins.ledger),
        clock,
        random.Random(1),
    )
    try:
        link.check_in(CheckInRequest({}, "", 0, "test"))
        for _ in range(300):  # more than one call carries
            journal.append(window([0.001]))
        while journal.head().has_pending:
            sender.send_batch()

        [row] = admin.get("/v1/devices")["devices"]  # type: ignore[misc]  # JSON
        assert (row["device_id"], row["name"], row["head_seq"]) == (record.device_id, "ward-3", 300)
        assert bytes_out.take()["report"] > 300 * 100

        admin.post(f"/v1/devices/{record.device_id}/revoke", {"reason": "stolen"})
        journal.append(window([0.001]))
        with pytest.raises(HoldfastError, match="revoked"):
            sender.send_batch()
        assert journal.head().has_pending  # the record is kept
        with pytest.raises(HoldfastError, match="revoked"):
            renew_certificate(device, ByteLedger())
    finally:
        link.close()
        journal.close()


def test_device_renews_its_certificate(admin: AdminClient, tmp_path: Path, clock: ShiftedClock) -> None:
    device = enrolled(admin, tmp_path / "device", clock)
    before = device.certificate

    device.replace_certificate(renew_certificate(device, ByteLedger()))

    assert device.certificate != before
    link = open_link(device, ByteLedger(), clock)
    link.check_in(CheckInRequest({}, "", 0, "test"))
    link.close()


def test_used_token_is_refused_over_the_wire(admin: AdminClient, tmp_path: Path, clock: ShiftedClock) -> None:
    token = new_token(admin)
    enrol(create_device_state(tmp_path / "first"), token, SitePrincipals().keys, clock)

    with pytest.raises(EnrolmentError, match="used already"):
        enrol(create_device_state(tmp_path / "second"), token, SitePrincipals().keys, clock)


def test_token_with_the_pin_of_another_authority_sends_no_secret(
    admin: AdminClient, tmp_path: Path, clock: ShiftedClock
) -> None:
    token = new_token(admin)
    wrong = JoinToken(token.address, token.token_id, token.secret, PrivateKey.generate(ED25519).public_key.key_id)

    with pytest.raises(EnrolmentError):
        enrol(create_device_state(tmp_path / "device"), wrong, SitePrincipals().keys, clock)

    enrol(create_device_state(tmp_path / "again"), token, SitePrincipals().keys, clock)  # the token was not used
