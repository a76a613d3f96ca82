"""Enrolment pins what it has to, and gives the secret to nobody but the pinned authority."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.coordinator import SITE, TRUST_DOMAIN, FakeCoordinator
from tests.fakes.enrolled import SitePrincipals, enrol_device

from holdfast.errors import EnrolmentError, LinkError, StateError
from holdfast.identity.device import Device, is_enrolled
from holdfast.identity.state import create_state, open_state
from holdfast.trust import certificates
from holdfast.trust.keys import PrivateKey
from holdfast.wire.enrolment import JoinToken


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    with FakeCoordinator() as running:
        yield running


def test_enrolment_makes_a_device_with_pins_and_a_certificate(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    principals = SitePrincipals()

    device = enrol_device(coordinator, tmp_path / "state", principals=principals)

    assert (device.record.site, device.record.trust_domain) == (SITE, TRUST_DOMAIN)
    assert device.pins.site == principals.site.public_key
    assert device.pins.authors == (principals.author.public_key,)
    assert device.pins.approvers == (principals.approver.public_key,)
    assert device.pins.ledger == coordinator.ledger.public_key
    assert certificates.device_id_of(device.certificate) == device.record.device_id
    reopened = Device(open_state(tmp_path / "state"))
    assert (reopened.record, reopened.pins) == (device.record, device.pins)


def test_private_keys_are_readable_by_their_owner_only(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    enrol_device(coordinator, tmp_path / "state")

    identity = tmp_path / "state" / "identity"
    for name in ("tls", "report", "flower"):
        assert (identity / name).stat().st_mode & 0o777 == 0o600
    assert identity.stat().st_mode & 0o777 == 0o700


def test_nothing_secret_is_sent_when_the_pin_is_wrong(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    token = coordinator.token(pin=PrivateKey.generate("ecdsa-p256").public_key.key_id)

    with pytest.raises(EnrolmentError, match="nothing secret was sent"):
        enrol_device(coordinator, tmp_path / "state", token=token)

    assert [name for name, _ in coordinator.seen] == ["GetAuthority"]
    assert all(
        token.secret.encode() not in data and token.token_id.encode() not in data for _, data in coordinator.seen
    )
    assert not is_enrolled(open_state(tmp_path / "state"))


def test_a_middle_man_that_shows_the_true_authority_gets_no_secret(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    # he can copy the authority's certificate, but has no server certificate by it
    with FakeCoordinator() as middle_man:
        middle_man.shown_authority = coordinator.authority_pem
        token = dataclasses.replace(coordinator.token(), address=middle_man.enrolment_address)

        with pytest.raises(LinkError):
            enrol_device(coordinator, tmp_path / "state", token=token)

        assert [name for name, _ in middle_man.seen] == ["GetAuthority"]


@pytest.mark.parametrize("shown", [b"", b"-----BEGIN CERTIFICATE-----\nAA\n"])
def test_an_authority_that_is_no_certificate_is_refused(
    coordinator: FakeCoordinator, tmp_path: Path, shown: bytes
) -> None:
    coordinator.shown_authority = shown

    with pytest.raises(EnrolmentError, match="no readable authority"):
        enrol_device(coordinator, tmp_path / "state")


def test_expired_token_is_refused(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    with pytest.raises(EnrolmentError, match="expired"):
        enrol_device(coordinator, tmp_path / "state", token=coordinator.token(ttl_s=0.0))


def test_reused_token_is_refused(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    token = coordinator.token()
    enrol_device(coordinator, tmp_path / "first", token=token)

    with pytest.raises(EnrolmentError):
        enrol_device(coordinator, tmp_path / "second", token=token)

    assert not is_enrolled(open_state(tmp_path / "second"))


def test_forged_token_is_refused(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    token = dataclasses.replace(coordinator.token(), secret="guess")

    with pytest.raises(EnrolmentError, match="not valid"):
        enrol_device(coordinator, tmp_path / "state", token=token)


def test_cut_token_is_refused(coordinator: FakeCoordinator) -> None:
    with pytest.raises(EnrolmentError, match="not a join token"):
        JoinToken.from_text(coordinator.token().to_text()[:-20])


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.1:0", "127.0.0.1:x", ":1", ""])
def test_an_address_without_host_or_port_is_refused(coordinator: FakeCoordinator, tmp_path: Path, address: str) -> None:
    token = dataclasses.replace(coordinator.token(), address=address)

    with pytest.raises(EnrolmentError, match="host:port"):
        enrol_device(coordinator, tmp_path / "state", token=token)


def test_a_coordinator_that_is_not_there_is_named(tmp_path: Path) -> None:
    with FakeCoordinator() as coordinator:
        token = coordinator.token()

    with pytest.raises(LinkError, match="no coordinator answers"):
        enrol_device(coordinator, tmp_path / "state", token=token)


def test_the_same_folder_is_not_enrolled_twice(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    enrol_device(coordinator, tmp_path / "state")

    with pytest.raises(StateError, match="enrolled already"):
        enrol_device(coordinator, tmp_path / "state")


def test_after_a_lost_answer_a_fresh_token_gives_the_same_device(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    first = enrol_device(coordinator, tmp_path / "state").record
    (tmp_path / "state" / "identity" / "device.json").unlink()  # the answer never reached the disk

    second = enrol_device(coordinator, tmp_path / "state").record

    assert second.device_id == first.device_id


@pytest.mark.parametrize("file", ["device.json", "pins.json"])
@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": 2}', '{"schema": 1}'])
def test_a_damaged_identity_is_named(coordinator: FakeCoordinator, tmp_path: Path, file: str, content: str) -> None:
    enrol_device(coordinator, tmp_path / "state")
    (tmp_path / "state" / "identity" / file).write_text(content)

    with pytest.raises(StateError, match="damaged"):
        Device(open_state(tmp_path / "state"))


def test_a_device_that_never_enrolled_is_told_what_to_do(tmp_path: Path) -> None:
    state = create_state(tmp_path / "state")

    with pytest.raises(StateError, match="holdfast agent enrol"):
        Device(state)


def test_the_record_on_disk_holds_no_secret(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    token = coordinator.token()
    enrol_device(coordinator, tmp_path / "state", token=token)

    files = [path for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert all(token.secret.encode() not in path.read_bytes() for path in files)
    assert json.loads((tmp_path / "state" / "identity" / "device.json").read_text())["schema"] == 1
