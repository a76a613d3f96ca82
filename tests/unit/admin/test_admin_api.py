from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.coordinator_rooms import TRUST_DOMAIN, Rooms, make_rooms
from tests.fakes.raw_device import window

from holdfast.clock import SystemClock
from holdfast.errors import FormatError, HoldfastError, RoundError, SettingsError, StateError, TrustError
from holdfast.trust.checkpoint import verify_checkpoint
from holdfast.trust.keys import PublicKey
from holdfast.wire.enrolment import JoinToken
from holdfast_federation.admin.app import AdminCall, AdminRoute, admin_app, int_field, text_field
from holdfast_federation.admin.client import AdminClient
from holdfast_federation.admin.routes import CoreRooms, core_routes
from holdfast_federation.events.outbox import read
from holdfast_federation.server.web import WebServer, listen_unix


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Rooms]:
    rooms = make_rooms(tmp_path)
    yield rooms
    rooms.close()


def _fails(call: AdminCall) -> object:
    raise RoundError("run 7 has ended")


def _has_a_bug(call: AdminCall) -> object:
    raise KeyError("secret detail")


@pytest.fixture
def client(rooms: Rooms) -> Iterator[AdminClient]:
    core_rooms = CoreRooms(
        database=rooms.core.database,
        devices=rooms.core.devices,
        tokens=rooms.tokens,
        ledger=rooms.core.ledger,
        fleet=rooms.core.fleet,
        authority=rooms.core.authority,
        sites=("north", "south"),
        addresses=lambda: {"enrolment": "127.0.0.1:7443"},
        clock=rooms.clock,
    )
    more = [
        AdminRoute("POST", "/v1/echo", lambda call: call.body, max_body_bytes=10),
        AdminRoute("POST", "/v1/fails", _fails),
        AdminRoute("POST", "/v1/bug", _has_a_bug),
    ]
    server = WebServer(
        "admin", admin_app([*core_routes(core_rooms), *more]), listen_unix(rooms.core.state.admin_socket), SystemClock()
    )
    server.start()
    yield AdminClient(rooms.core.state.path)
    server.stop()


def test_status_counts(client: AdminClient, rooms: Rooms) -> None:
    rooms.enrolled()

    answer = client.get("/v1/status")

    assert (answer["trust_domain"], answer["devices"], answer["revoked"]) == (TRUST_DOMAIN, 1, 0)
    assert answer["ledger_size"] == 1


def test_token_says_where_to_enrol_and_whom_to_trust(client: AdminClient, rooms: Rooms) -> None:
    answer = client.post("/v1/tokens", {"site": "north", "name": "ward-3", "ttl_s": 60})

    token = JoinToken.from_text(str(answer["token"]))
    assert (token.address, token.authority_sha256) == ("127.0.0.1:7443", rooms.core.authority.pin)
    grant = rooms.tokens.check(token.token_id, token.secret)
    assert (grant.site, grant.name) == ("north", "ward-3")


def test_token_for_an_unknown_site_is_refused(client: AdminClient) -> None:
    with pytest.raises(SettingsError, match="known sites: north, south"):
        client.post("/v1/tokens", {"site": "west"})


@pytest.mark.parametrize("body", [{}, {"site": 1}, {"site": "north", "ttl_s": "x"}, {"site": "north", "ttl_s": True}])
def test_token_with_fields_of_the_wrong_kind_is_refused(client: AdminClient, body: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="field"):
        client.post("/v1/tokens", body)


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b"[" * 60_000])
def test_body_that_is_no_object_is_refused(client: AdminClient, body: bytes) -> None:
    with pytest.raises(FormatError, match="body is"):
        client.call("POST", "/v1/tokens", body)


def test_devices_show_what_they_reported(client: AdminClient, rooms: Rooms) -> None:
    device = rooms.enrolled("south")
    rooms.core.ingest.accept(device.device_id, [device.chain().next(window())])

    [row] = client.get("/v1/devices")["devices"]  # type: ignore[misc]  # JSON

    assert (row["device_id"], row["site"], row["head_seq"]) == (device.device_id, "south", 1)
    assert row["bytes_out"] == {"report": 100}


def test_revocation_is_recorded_once(client: AdminClient, rooms: Rooms) -> None:
    device = rooms.enrolled()
    path = f"/v1/devices/{device.device_id}/revoke"

    first, second = client.post(path, {"reason": "stolen"}), client.post(path, {"reason": "again"})

    assert (first["revoked_now"], second["revoked_now"]) == (True, False)
    assert rooms.core.devices.get(device.device_id).revoked_reason == "stolen"
    assert len(rooms.core.ledger.positions(device.device_id, "revocation")) == 1
    assert len(read(rooms.core.database, kinds=("revocation",))) == 1


def test_revoking_an_unknown_device_is_refused(client: AdminClient) -> None:
    with pytest.raises(TrustError, match="not known"):
        client.post("/v1/devices/nobody/revoke", {})


def test_checkpoint_is_signed_by_the_key_beside_it(client: AdminClient) -> None:
    answer = client.get("/v1/ledger/checkpoint")

    key = PublicKey.from_pem(str(answer["ledger_key_pem"]))
    assert verify_checkpoint(str(answer["checkpoint"]), str(answer["origin"]), key).size == 0


def test_bytes_travel_as_they_are_and_are_bounded(client: AdminClient) -> None:
    assert client.call("POST", "/v1/echo", b"\x00\xff") == b"\x00\xff"
    with pytest.raises(FormatError, match="larger than 10"):
        client.call("POST", "/v1/echo", b"x" * 11)


def test_error_comes_back_as_it_was_raised(client: AdminClient) -> None:
    with pytest.raises(RoundError, match="run 7 has ended"):
        client.post("/v1/fails", {})


def test_bug_comes_back_without_its_details(client: AdminClient) -> None:
    with pytest.raises(HoldfastError, match="internal error") as error:
        client.post("/v1/bug", {})
    assert "secret detail" not in str(error.value)


def test_unknown_route_is_an_error(client: AdminClient) -> None:
    with pytest.raises(StateError, match="404"):
        client.get("/v1/nothing")


def test_folder_without_a_coordinator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no coordinator answers"):
        AdminClient(tmp_path).get("/v1/status")
    with pytest.raises(StateError, match="no coordinator answers"):
        AdminClient(tmp_path / "missing").get("/v1/status")


def test_socket_works_in_a_very_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    route = AdminRoute("GET", "/v1/hello", lambda call: {"hello": "there"})
    server = WebServer("admin", admin_app([route]), listen_unix(deep / "admin.sock"), SystemClock())
    server.start()

    answer = AdminClient(deep).get("/v1/hello")
    server.stop()

    assert answer == {"hello": "there"}


def test_fields_have_defaults_only_where_given() -> None:
    assert (text_field({}, "a", "x"), int_field({}, "b", 3)) == ("x", 3)
    with pytest.raises(FormatError, match="'a'"):
        text_field({}, "a")
    with pytest.raises(FormatError, match="'b'"):
        int_field({"b": 1.5}, "b")
