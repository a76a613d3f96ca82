from __future__ import annotations

import http.client
import json
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from tests.fakes.coordinator_rooms import SETTINGS, TRUST_DOMAIN
from tests.fakes.raw_device import ENROLMENT, FLEET, RawDevice, call, enrolment_channel, secure
from tests.fakes.shifted_clock import ShiftedClock

from holdfast.errors import SettingsError, StateError
from holdfast.trust.certificates import create_csr
from holdfast.trust.envelope import Envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.convert import to_bytes
from holdfast.wire.enrolment import JoinToken
from holdfast.wire.messages import FetchRequest, FetchResponse, FleetCallRequest
from holdfast_federation.admin.client import AdminClient
from holdfast_federation.enrolment.authority import CertificateAuthority
from holdfast_federation.server.build import Coordinator, Core, Parts
from holdfast_federation.server.fleet_service import FleetParts
from holdfast_federation.server.settings import CoordinatorSettings, split_address
from holdfast_federation.server.state import Principals, StateFolder, create_state, open_state


@pytest.fixture
def clock() -> ShiftedClock:
    return ShiftedClock()


@pytest.fixture
def state(tmp_path: Path, clock: ShiftedClock) -> StateFolder:
    return create_state(tmp_path / "state", TRUST_DOMAIN, Principals(), clock)


@pytest.fixture
def coordinator(state: StateFolder, clock: ShiftedClock) -> Iterator[Coordinator]:
    coordinator = Coordinator(state.path, SETTINGS, clock)
    coordinator.start()
    yield coordinator
    coordinator.stop()


def authority_pem(state: StateFolder) -> str:
    return (state.authority / "ca.pem").read_text()


def enrolled(state: StateFolder, site: str = "north") -> RawDevice:
    answer = AdminClient(state.path).post("/v1/tokens", {"site": site})
    device = RawDevice()
    device.enrol(JoinToken.from_text(str(answer["token"])), authority_pem(state), TRUST_DOMAIN)
    return device


def refusal(error: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    return error.value.code(), error.value.details()  # type: ignore[attr-defined]  # grpc.RpcError is a Call


def test_device_enrols_checks_in_and_reports(coordinator: Coordinator, state: StateFolder) -> None:
    device = enrolled(state)
    chain = device.chain()

    with device.fleet() as fleet:
        told = fleet.check_in({"digits": "ab"})
        answer = fleet.report(chain.next(), chain.next())

    assert (answer.head_seq, answer.refused_code) == (2, "")
    assert (told.assignments, told.offers, told.next_check_in_ms) == ((), (), 1_000)
    [row] = AdminClient(state.path).get("/v1/devices")["devices"]  # type: ignore[misc]  # JSON
    assert (row["device_id"], row["head_seq"], row["active"]) == (device.device_id, 2, {"digits": "ab"})


def test_expired_certificate_on_an_open_connection_is_refused(
    coordinator: Coordinator, state: StateFolder, clock: ShiftedClock
) -> None:
    device = enrolled(state)
    chain = device.chain()
    with device.fleet() as fleet:
        assert fleet.report(chain.next()).head_seq == 1
        clock.advance(25 * 3_600)

        with pytest.raises(grpc.RpcError) as error:
            fleet.report(chain.next())

    code, text = refusal(error)
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert "has expired" in text


def test_device_renews_over_the_wire_and_reports_with_the_new_certificate(
    coordinator: Coordinator, state: StateFolder
) -> None:
    device = enrolled(state)
    first = device.certificate_pem

    device.renew(coordinator.addresses["enrolment"], authority_pem(state), TRUST_DOMAIN)

    assert device.certificate_pem != first
    with device.fleet() as fleet:
        assert fleet.report(device.chain().next()).head_seq == 1


def test_revoked_device_on_an_open_connection_is_refused(coordinator: Coordinator, state: StateFolder) -> None:
    device, other = enrolled(state), enrolled(state)
    with device.fleet() as fleet, other.fleet() as other_fleet:
        fleet.check_in()
        AdminClient(state.path).post(f"/v1/devices/{device.device_id}/revoke", {"reason": "stolen"})

        with pytest.raises(grpc.RpcError) as error:
            fleet.report(device.chain().next())
        other_fleet.check_in()

    code, text = refusal(error)
    assert code == grpc.StatusCode.PERMISSION_DENIED
    assert "revoked" in text


def test_connection_without_a_certificate_is_refused(coordinator: Coordinator, state: StateFolder) -> None:
    credentials = grpc.ssl_channel_credentials(authority_pem(state).encode())

    with secure(coordinator.addresses["device"], credentials, TRUST_DOMAIN) as channel:
        with pytest.raises(grpc.RpcError) as error:
            call(channel, FLEET + "CheckIn", b"")

    assert refusal(error)[0] == grpc.StatusCode.UNAVAILABLE


def test_certificate_of_another_authority_is_refused(
    coordinator: Coordinator, state: StateFolder, tmp_path: Path, clock: ShiftedClock
) -> None:
    device = enrolled(state)
    forger = CertificateAuthority.create(tmp_path / "forger", TRUST_DOMAIN, clock)
    csr = create_csr(device.tls_key, device.device_id).decode()
    device.certificate_pem = forger.issue_device(csr, device.device_id).decode()

    with device.fleet() as fleet, pytest.raises(grpc.RpcError) as error:
        fleet.check_in()

    assert refusal(error)[0] == grpc.StatusCode.UNAVAILABLE


def test_server_certificate_does_not_open_the_device_listener(
    coordinator: Coordinator, state: StateFolder, clock: ShiftedClock
) -> None:
    device = enrolled(state)
    authority = CertificateAuthority.load(state.authority, clock)
    device.certificate_pem = authority.issue_server(device.tls_key.public_key, ()).decode()

    with device.fleet() as fleet, pytest.raises(grpc.RpcError) as error:
        fleet.check_in()

    assert refusal(error)[0] == grpc.StatusCode.UNAVAILABLE


def test_malformed_messages_are_invalid_arguments(coordinator: Coordinator, state: StateFolder) -> None:
    device = enrolled(state)
    with device.fleet() as fleet:
        for method in ("Report", "CheckIn", "Fetch", "FleetCall"):
            with pytest.raises(grpc.RpcError) as error:
                call(fleet.channel, FLEET + method, b"\xff\xff\xff")
            assert refusal(error)[0] == grpc.StatusCode.INVALID_ARGUMENT
    with enrolment_channel(coordinator.addresses["enrolment"], authority_pem(state), TRUST_DOMAIN) as channel:
        for method in ("Challenge", "Enrol", "Renew"):
            with pytest.raises(grpc.RpcError) as error:
                call(channel, ENROLMENT + method, b"\xff\xff\xff")
            assert refusal(error)[0] == grpc.StatusCode.INVALID_ARGUMENT


def test_oversized_messages_are_refused_before_parsing(coordinator: Coordinator, state: StateFolder) -> None:
    device = enrolled(state)
    with device.fleet() as fleet, pytest.raises(grpc.RpcError) as error:
        call(fleet.channel, FLEET + "Report", b"\x00" * 4_194_305)
    assert refusal(error)[0] == grpc.StatusCode.INVALID_ARGUMENT

    with enrolment_channel(coordinator.addresses["enrolment"], authority_pem(state), TRUST_DOMAIN) as channel:
        with pytest.raises(grpc.RpcError) as error:
            call(channel, ENROLMENT + "Enrol", b"\x00" * 100_000)
    assert refusal(error)[0] == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_absent_parts_answer_truthfully(coordinator: Coordinator, state: StateFolder) -> None:
    device = enrolled(state)
    with device.fleet() as fleet:
        with pytest.raises(grpc.RpcError) as fetch:
            call(fleet.channel, FLEET + "Fetch", to_bytes(FetchRequest("ab" * 32, 0, 10)))
        with pytest.raises(grpc.RpcError) as tunnel:
            call(fleet.channel, FLEET + "FleetCall", to_bytes(FleetCallRequest("", "/api", {}, b"")))

    assert refusal(fetch)[0] == grpc.StatusCode.PERMISSION_DENIED
    assert refusal(tunnel)[0] == grpc.StatusCode.UNIMPLEMENTED


class _Parts:
    """Every part at once; fetches fail with a bug of ours."""

    def offers(self, device_id: str) -> tuple[Envelope, ...]:
        return (Envelope("offer", device_id.encode(), ()),)

    def may_fetch(self, device_id: str, blob_sha256: str) -> bool:
        return True

    def piece(self, blob_sha256: str, offset: int, max_bytes: int) -> FetchResponse:
        raise KeyError("secret detail")


def test_parts_are_asked_and_their_bugs_stay_inside(state: StateFolder, clock: ShiftedClock) -> None:
    parts = _Parts()

    def parts_of(core: Core) -> Parts:
        return Parts(fleet=FleetParts(offers=parts, pieces=parts))

    coordinator = Coordinator(state.path, SETTINGS, clock, parts_of)
    coordinator.start()
    try:
        device = enrolled(state)
        with device.fleet() as fleet:
            offers = fleet.check_in().offers
            with pytest.raises(grpc.RpcError) as error:
                call(fleet.channel, FLEET + "Fetch", to_bytes(FetchRequest("ab" * 32, 0, 10)))
    finally:
        coordinator.stop()

    code, text = refusal(error)
    assert offers == (Envelope("offer", device.device_id.encode(), ()),)
    assert code == grpc.StatusCode.INTERNAL
    assert "internal error (id " in text
    assert "secret detail" not in text


def test_report_by_another_key_is_refused_over_the_wire(coordinator: Coordinator, state: StateFolder) -> None:
    device = enrolled(state)
    chain = replace(device.chain(), report_key=PrivateKey.generate(ED25519))

    with device.fleet() as fleet:
        answer = fleet.report(chain.next())

    assert (answer.head_seq, answer.refused_code) == (0, "signature")


def test_page_shows_the_fleet(coordinator: Coordinator, state: StateFolder) -> None:
    device = enrolled(state)
    with device.fleet() as fleet:
        fleet.report(device.chain().next())
    host, port = split_address(coordinator.addresses["page"].removeprefix("http://").rstrip("/"), "page")

    connection = http.client.HTTPConnection(host, port, timeout=20)
    connection.request("GET", "/")
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()

    assert response.status == 200
    assert device.device_id in text
    assert "digits" in text


def test_second_coordinator_on_the_folder_is_refused(coordinator: Coordinator, state: StateFolder) -> None:
    with pytest.raises(StateError, match="another coordinator runs"):
        Coordinator(state.path, SETTINGS, ShiftedClock()).start()

    AdminClient(state.path).get("/v1/status")  # the first one still answers


@pytest.mark.parametrize("name", ["device_listen", "enrolment_listen", "page_listen"])
def test_port_in_use_is_refused_and_names_the_setting(state: StateFolder, clock: ShiftedClock, name: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"

        with pytest.raises(SettingsError, match=f"{address}.*{name}"):
            Coordinator(state.path, replace(SETTINGS, **{name: address}), clock).start()

    again = Coordinator(state.path, SETTINGS, clock)  # everything was released
    again.start()
    again.stop()


def test_folder_starts_again_after_a_kill_left_its_socket(state: StateFolder, clock: ShiftedClock) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(state.admin_socket))

    coordinator = Coordinator(state.path, SETTINGS, clock)
    coordinator.start()
    AdminClient(state.path).get("/v1/status")
    coordinator.stop()


def test_admin_socket_and_folder_are_private(coordinator: Coordinator, state: StateFolder) -> None:
    assert stat.S_IMODE(state.admin_socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.path.stat().st_mode) == 0o700


def test_ready_file_holds_every_address(coordinator: Coordinator, state: StateFolder, tmp_path: Path) -> None:
    coordinator.write_ready_file(tmp_path / "ready.json")

    document = json.loads((tmp_path / "ready.json").read_text())

    assert {"enrolment", "device", "page", "admin", "pid"} == set(document)
    assert document["enrolment"] == coordinator.addresses["enrolment"]


def test_stopped_coordinator_answers_nobody(state: StateFolder, clock: ShiftedClock) -> None:
    coordinator = Coordinator(state.path, SETTINGS, clock)
    coordinator.start()
    coordinator.stop()

    with pytest.raises(StateError, match="no coordinator answers"):
        AdminClient(state.path).get("/v1/status")


def test_wildcard_without_an_advertised_host_is_refused(state: StateFolder, clock: ShiftedClock) -> None:
    settings = replace(SETTINGS, device_listen="0.0.0.0:0")

    with pytest.raises(SettingsError, match="advertise_host"):
        Coordinator(state.path, settings, clock).start()


@pytest.mark.parametrize("text", ["7443", "host:", ":7443", "host:x", "host:70000", ""])
def test_malformed_address_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="host:port"):
        split_address(text, "device_listen")


def test_settings_have_loopback_defaults() -> None:
    settings = CoordinatorSettings()

    for address in (settings.device_listen, settings.enrolment_listen, settings.page_listen):
        assert split_address(address, "x")[0] == "127.0.0.1"


def test_folder_of_a_newer_version_is_refused(state: StateFolder) -> None:
    state.version.write_text("2\n")

    with pytest.raises(StateError, match="version '2'"):
        open_state(state.path)


def test_folder_that_is_not_writable_is_refused_before_anything_listens(
    state: StateFolder, clock: ShiftedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.read_bytes() for path in state.path.rglob("*") if path.is_file()}
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # what a read-only mount answers, also to root
    coordinator = Coordinator(state.path, SETTINGS, clock)

    with pytest.raises(StateError, match=r"state folder .* is not writable by this user"):
        coordinator.start()

    assert coordinator.addresses == {}
    assert {path: path.read_bytes() for path in state.path.rglob("*") if path.is_file()} == before


def test_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="not a coordinator's state folder"):
        open_state(tmp_path)


def test_finished_folder_is_not_made_again(state: StateFolder, clock: ShiftedClock) -> None:
    before = authority_pem(state)

    with pytest.raises(StateError, match="already"):
        create_state(state.path, TRUST_DOMAIN, Principals(), clock)
    assert authority_pem(state) == before


def test_interrupted_init_is_taken_up_again(state: StateFolder, clock: ShiftedClock) -> None:
    before = authority_pem(state)
    state.version.unlink()

    again = create_state(state.path, TRUST_DOMAIN, Principals(), clock)

    assert authority_pem(again) == before


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path, clock: ShiftedClock) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StateError, match="cannot make the folder"):
        create_state(tmp_path / "file" / "state", TRUST_DOMAIN, Principals(), clock)


def test_principals_are_kept(tmp_path: Path, clock: ShiftedClock) -> None:
    keys = [PrivateKey.generate(ED25519).public_key for _ in range(3)]

    state = create_state(tmp_path / "s", TRUST_DOMAIN, Principals((keys[0],), (keys[1],), {"north": keys[2]}), clock)

    found = state.principals()
    assert (found.authors, found.approvers, found.sites) == ((keys[0],), (keys[1],), {"north": keys[2]})
