"""Calls over mutual TLS: typed, counted, moved to a new certificate without a lost call, explained when they fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.enrolled import enrol_device

from holdfast.clock import SystemClock
from holdfast.errors import LinkError, RefusedCallError
from holdfast.identity.device import Device
from holdfast.identity.renewal import renew_certificate
from holdfast.link.byte_ledger import ByteLedger
from holdfast.link.channel import ClientIdentity
from holdfast.link.client import CHECK_IN, Endpoint, Link, diagnose
from holdfast.link.enrolment import split_address
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import CheckInRequest, FetchRequest

REQUEST = CheckInRequest({"digits": "ab" * 32}, "", 0, "0.1.0")


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    with FakeCoordinator() as running:
        yield running


@pytest.fixture
def device(coordinator: FakeCoordinator, tmp_path: Path) -> Device:
    return enrol_device(coordinator, tmp_path / "state")


def make_link(device: Device, ledger: ByteLedger, address: str = "", identity: ClientIdentity | None = None) -> Link:
    endpoint = Endpoint(address or device.record.device_address, device.authority)
    return Link(endpoint, identity or device.client_identity, ledger, SystemClock())


def test_a_call_arrives_and_its_bytes_are_counted(coordinator: FakeCoordinator, device: Device) -> None:
    ledger = ByteLedger()
    link = make_link(device, ledger)

    link.check_in(REQUEST)
    link.close()

    assert coordinator.check_ins == [REQUEST]
    assert ledger.take() == {"check_in": len(to_bytes(REQUEST))}
    assert ledger.take() == {}
    assert ledger.total() == {"check_in": len(to_bytes(REQUEST))}


def test_renewal_moves_to_a_second_connection(coordinator: FakeCoordinator, device: Device) -> None:
    link = make_link(device, ByteLedger())
    link.check_in(REQUEST)

    device.replace_certificate(renew_certificate(device, ByteLedger()))
    link.renew(device.client_identity)
    link.check_in(REQUEST)
    link.close()

    assert len(coordinator.check_ins) == 2
    assert len(set(coordinator.peers)) == 2


def test_a_refusal_is_told_from_silence(coordinator: FakeCoordinator, device: Device) -> None:
    link = make_link(device, ByteLedger())
    coordinator.revoked.add(device.record.device_id)

    with pytest.raises(RefusedCallError, match="revoked"):
        link.check_in(REQUEST)
    with pytest.raises(RefusedCallError, match="Fetch"):
        link.fetch(FetchRequest("ab" * 32, 0, 10))  # the fake does not know this method
    link.close()


def test_nobody_at_the_address_is_a_link_error_with_a_hint(device: Device) -> None:
    link = make_link(device, ByteLedger(), address="127.0.0.1:1")

    with pytest.raises(LinkError, match="is the coordinator running") as caught:
        link.check_in(REQUEST)
    link.close()

    assert not isinstance(caught.value, RefusedCallError)


def test_another_coordinator_under_the_same_name_is_not_trusted(device: Device) -> None:
    with FakeCoordinator() as impostor:
        link = make_link(device, ByteLedger(), address=impostor.device_address)

        with pytest.raises(LinkError):
            link.check_in(REQUEST)
        link.close()

    assert impostor.check_ins == []


def test_without_a_certificate_nothing_is_answered(coordinator: FakeCoordinator, device: Device) -> None:
    from holdfast.link.channel import call, open_channel
    from holdfast.wire.messages import CheckInResponse

    channel = open_channel(device.record.device_address, device.authority, "coordinator.plant7.example")

    with pytest.raises(LinkError):
        call(channel, CHECK_IN, REQUEST, CheckInResponse, ByteLedger())
    channel.close()

    assert coordinator.check_ins == []


def test_a_closed_link_says_so(device: Device) -> None:
    link = make_link(device, ByteLedger())
    link.close()

    with pytest.raises(LinkError, match="closed"):
        link.check_in(REQUEST)


def test_an_answer_that_is_no_message_is_a_link_error(coordinator: FakeCoordinator, device: Device) -> None:
    class Garbage:
        def __call__(self, data: bytes, timeout: float) -> bytes:
            return b"\xff\xff\xff"

    class Channel:
        def unary_unary(self, path: str, **_: object) -> Garbage:
            return Garbage()

    from holdfast.link.channel import call
    from holdfast.wire.messages import CheckInResponse

    channel: grpc.Channel = Channel()  # type: ignore[assignment]  # only what `call` uses

    with pytest.raises(LinkError, match="cannot be read"):
        call(channel, CHECK_IN, REQUEST, CheckInResponse, ByteLedger())


def test_diagnosis_names_an_expired_certificate_and_a_wrong_clock(device: Device) -> None:
    not_before, not_after = device.certificate_validity
    identity = device.client_identity

    assert "expired 5 s ago" in diagnose(identity, not_after + 5_000_000_000)
    assert "set the clock" in diagnose(identity, not_before - 1)
    assert "clock may be behind" in diagnose(identity, not_before + 1)
    assert "is the coordinator running" in diagnose(identity, not_after - 1)
    assert "cannot be read" in diagnose(ClientIdentity(b"", b""), not_after)


def test_addresses_split_also_with_brackets() -> None:
    assert split_address("[::1]:443") == ("::1", 443)
    assert split_address("plant7.example:8443") == ("plant7.example", 8443)
