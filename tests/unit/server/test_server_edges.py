from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import grpc
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator_rooms import TRUST_DOMAIN, Rooms, make_rooms
from tests.fakes.raw_device import RawDevice, call, enrolment_channel

from holdfast import errors
from holdfast.clock import SystemClock
from holdfast.errors import HoldfastError, OverloadedError, StateError, TrustError
from holdfast.trust.certificates import SERVER_LIFETIME_S, verify_chain
from holdfast_federation.server.admission import Admission
from holdfast_federation.server.edge import service
from holdfast_federation.server.enrolment_service import RateLimit
from holdfast_federation.server.listener import ListenerBounds, ServerCertificate, start_listener
from holdfast_federation.status import STATUS_OF, status_of


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rooms(tmp_path: Path, clock: FakeClock) -> Iterator[Rooms]:
    rooms = make_rooms(tmp_path, clock)
    yield rooms
    rooms.close()


def properties(device: RawDevice, domain: str = TRUST_DOMAIN, device_id: str = "") -> Mapping[str, list[bytes]]:
    spiffe_id = f"spiffe://{domain}/device/{device_id or device.device_id}"
    return {"peer_spiffe_id": [spiffe_id.encode()], "x509_pem_cert": [device.certificate_pem.encode()]}


def test_server_certificate_is_renewed_at_half_life(rooms: Rooms, clock: FakeClock) -> None:
    certificate = ServerCertificate(rooms.core.authority, ("10.0.0.1",), clock)
    first = certificate.current()
    clock.advance(SERVER_LIFETIME_S * 0.49)
    same = certificate.current()
    clock.advance(SERVER_LIFETIME_S * 0.02)

    second = certificate.current()

    assert first == same != second
    verify_chain(second, [rooms.core.authority.certificate_pem.encode()], "server", clock.utc_ns())


def test_enrolled_device_is_admitted(rooms: Rooms, clock: FakeClock) -> None:
    device = rooms.enrolled()
    admission = Admission(rooms.core.devices, TRUST_DOMAIN, clock)

    assert admission.admit(properties(device)).device_id == device.device_id


def test_caller_without_a_certificate_is_refused(rooms: Rooms, clock: FakeClock) -> None:
    with pytest.raises(TrustError, match="required"):
        Admission(rooms.core.devices, TRUST_DOMAIN, clock).admit({})


def test_caller_of_another_trust_domain_is_refused(rooms: Rooms, clock: FakeClock) -> None:
    admission = Admission(rooms.core.devices, TRUST_DOMAIN, clock)

    with pytest.raises(TrustError, match="required"):
        admission.admit(properties(rooms.enrolled(), domain="other.example"))


def test_id_that_is_not_the_certificates_is_refused(rooms: Rooms, clock: FakeClock) -> None:
    admission = Admission(rooms.core.devices, TRUST_DOMAIN, clock)
    device, other = rooms.enrolled(), rooms.enrolled()

    with pytest.raises(TrustError, match="different devices"):
        admission.admit(properties(device, device_id=other.device_id))


def test_certificate_of_a_device_that_is_not_recorded_is_refused(
    rooms: Rooms, tmp_path: Path, clock: FakeClock
) -> None:
    other = make_rooms(tmp_path / "other", clock)
    device = other.enrolled()
    other.close()

    with pytest.raises(TrustError, match="not known"):
        Admission(rooms.core.devices, TRUST_DOMAIN, clock).admit(properties(device))


def test_certificate_is_refused_the_moment_it_expires(rooms: Rooms, clock: FakeClock) -> None:
    admission = Admission(rooms.core.devices, TRUST_DOMAIN, clock)
    device = rooms.enrolled()
    clock.advance(86_400)
    admission.admit(properties(device))
    clock.advance(1)

    with pytest.raises(TrustError, match="has expired"):
        admission.admit(properties(device))


def test_rate_limit_refuses_a_flood_and_recovers(clock: FakeClock) -> None:
    limit = RateLimit(clock, per_s=10.0, burst=3)
    for _ in range(3):
        limit.take()

    with pytest.raises(OverloadedError):
        limit.take()
    clock.advance(0.1)
    limit.take()
    with pytest.raises(OverloadedError):
        limit.take()


def test_listener_refuses_more_calls_than_it_is_built_for(tmp_path: Path) -> None:
    rooms = make_rooms(tmp_path, SystemClock())
    entered, leave = threading.Event(), threading.Event()

    def slow(request: bytes, context: grpc.ServicerContext) -> bytes:
        entered.set()
        leave.wait(30)
        return b"done"

    certificate = ServerCertificate(rooms.core.authority, (), SystemClock())
    server, port = start_listener(
        "test",
        "127.0.0.1:0",
        service("test.Service", {"Slow": slow}),
        certificate,
        ListenerBounds(threads=1, calls=1, message_bytes=1_024),
        client_certificate=False,
    )
    try:
        with enrolment_channel(f"127.0.0.1:{port}", rooms.core.authority.certificate_pem, TRUST_DOMAIN) as channel:
            first = channel.unary_unary("/test.Service/Slow").future(b"", timeout=30)
            assert entered.wait(30)

            with pytest.raises(grpc.RpcError) as error:
                call(channel, "/test.Service/Slow", b"")
            leave.set()

            assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]  # a Call
            assert first.result() == b"done"
    finally:
        leave.set()
        server.stop(5).wait(30)
        rooms.close()


def _kinds(kind: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def test_no_row_of_the_table_is_hidden_by_a_parent_above_it() -> None:
    for index, (kind, _, _) in enumerate(STATUS_OF):
        above = [other for other, _, _ in STATUS_OF[:index]]
        assert not issubclass(kind, tuple(above)), kind


def test_every_error_of_the_tree_but_the_root_has_a_row() -> None:
    rows = tuple(kind for kind, _, _ in STATUS_OF if kind is not HoldfastError)

    missing = [
        kind.__name__
        for kind in _kinds(HoldfastError)
        if kind.__module__ == errors.__name__ and kind is not HoldfastError and not issubclass(kind, rows)
    ]

    assert missing == []


def test_paths_of_our_own_disk_are_not_told() -> None:
    status = status_of(StateError("database /secret/path is full"))

    assert (status.grpc, status.http) == ("UNAVAILABLE", 503)
    assert "/secret" not in status.text
