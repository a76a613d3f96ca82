"""A public unix socket: the same protocols as on a port, this user's alone, and gone with its server."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from tests.fakes import served_models as models
from tests.fakes.serving import call, connect, exchange, http_infer, pool_of, status_of

from holdfast.cli.serve import client_lines, curl_line
from holdfast.errors import UsageError
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip
from holdfast.serving.authorisation import check_unix_exposure, rules_of
from holdfast.serving.listening import listen_unix
from holdfast.serving.server import Address, Front, Server, ServerOptions

ONE = np.ones((1, 4), dtype=np.float32)
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}]}).encode()


@contextmanager
def serving_at(listen: Address, front: Front, *also: Address, unix_mode: int = 0o600) -> Iterator[Server]:
    server = Server(
        pool_of({"m": models.scale(2.0)}),
        options=ServerOptions(listen, also, front=front, unix_mode=unix_mode),
    )
    server.start()
    try:
        yield server
    finally:
        server.stop(2.0)


def ask(target: str) -> list[float]:
    """What tritonclient gets for ones."""
    tensor = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
    tensor.set_data_from_numpy(ONE)
    with tritonclient.grpc.InferenceServerClient(target) as client:
        answer: list[float] = client.infer("m", [tensor]).as_numpy("y")[0].tolist()
    return answer


@pytest.mark.parametrize("form", ["unix:{}", "unix://{}"])
def test_clients_of_both_protocols_are_answered(tmp_path: Path, front: Front, form: str) -> None:
    address = Address.unix(tmp_path / "s")

    with serving_at(address, front) as server:
        assert server.addresses == (address,)
        assert ask(form.format(tmp_path / "s")) == [2, 2, 2, 2]
        request = oip.encode_request(TensorRequest("m", "", "r", {"x": ONE}))
        assert oip.decode_response(call(address, request)).request_id == "r"
        assert status_of(exchange(address, http_infer("m", JSON_ONE))) == 200


def test_socket_beside_a_port_serves_the_same(tmp_path: Path, front: Front) -> None:
    with serving_at(Address("127.0.0.1", 0), front, Address.unix(tmp_path / "s")) as server:
        at_port, at_path = (exchange(address, http_infer("m", JSON_ONE)) for address in server.addresses)

    assert status_of(at_path) == 200
    assert at_path == at_port


def test_socket_is_this_users_alone_and_gone_after_the_stop(tmp_path: Path, front: Front) -> None:
    path = tmp_path / "s"

    with serving_at(Address.unix(path), front):
        assert path.stat().st_mode & 0o777 == 0o600
    assert not path.exists()


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666])
def test_rights_are_those_that_were_asked_for(tmp_path: Path, mode: int) -> None:
    path, mask = tmp_path / "s", os.umask(0o022)

    try:
        with serving_at(Address.unix(path), "native", unix_mode=mode):
            assert path.stat().st_mode & 0o777 == mode
    finally:
        os.umask(mask)


def test_socket_of_a_dead_server_is_replaced(tmp_path: Path, front: Front) -> None:
    listen_unix(tmp_path / "s")[0].close()  # its name stays

    with serving_at(Address.unix(tmp_path / "s"), front):
        assert ask(f"unix:{tmp_path / 's'}") == [2, 2, 2, 2]


def test_socket_of_a_living_server_is_left_alone(tmp_path: Path, front: Front) -> None:
    address = Address.unix(tmp_path / "s")

    with serving_at(address, front):
        second = Server(pool_of({}), options=ServerOptions(address, front=front))
        with pytest.raises(UsageError, match="in use by another server"):
            second.start()
        assert ask(str(address)) == [2, 2, 2, 2]


def test_failed_start_leaves_no_socket_behind(tmp_path: Path, front: Front) -> None:
    taken, _ = listen_unix(tmp_path / "taken")
    options = ServerOptions(Address.unix(tmp_path / "s"), (Address.unix(tmp_path / "taken"),), front=front)

    with taken, pytest.raises(UsageError, match="in use"):
        Server(pool_of({}), options=options).start()

    assert not (tmp_path / "s").exists()
    assert (tmp_path / "taken").exists()


def test_stop_removes_nothing_that_took_its_place(tmp_path: Path) -> None:
    path = tmp_path / "s"

    with serving_at(Address.unix(path), "native"):
        path.unlink()
        path.write_text("precious")

    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent/s", "No such file or directory"),
        ("file/s", "Not a directory"),
        ("file", "Address already in use"),
        ("n" * 120, "at most 107 bytes for a unix socket"),
    ],
)
def test_path_that_cannot_be_listened_on_is_told(tmp_path: Path, front: Front, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("precious")
    server = Server(pool_of({}), options=ServerOptions(Address.unix(tmp_path / name), front=front))

    with pytest.raises(UsageError, match=reason):
        server.start()

    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    "text", ["unix:", "unix://", "unix:///", "unix://host/s", "unix://s", "unix:/a/", "unix:/a\0b"]
)
def test_malformed_unix_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"expected (the path of a socket after unix:|unix:PATH)"):
        Address.parse(text)


def test_unix_address_round_trips() -> None:
    assert str(Address.parse("unix:/run/a.sock")) == "unix:/run/a.sock"
    assert Address.parse("unix:///run/a.sock") == Address.parse("unix:/run/a.sock")
    assert Address.parse("unix:here.sock").path == Path("here.sock")


def test_allow_list_without_tokens_refuses_a_socket_that_nobody_could_use() -> None:
    with pytest.raises(UsageError, match="shuts everybody out of unix:/s"):
        check_unix_exposure(rules_of(["spiffe://example.org/client/7"]), "unix:/s")

    check_unix_exposure(rules_of(["spiffe://example.org/client/7"], ["a-token-of-16-chars"]), "unix:/s")


def test_callers_on_a_socket_are_local_and_tokens_hold_there(tmp_path: Path, front: Front) -> None:
    options = ServerOptions(Address.unix(tmp_path / "s"), rules=rules_of([], ["a-token-of-16-chars"]), front=front)
    server = Server(pool_of({"m": models.scale(2.0)}), options=options)
    address = server.start()

    try:
        assert status_of(exchange(address, http_infer("m", JSON_ONE))) == 401
        known = http_infer("m", JSON_ONE, "Authorization: Bearer a-token-of-16-chars")
        assert status_of(exchange(address, known)) == 200
    finally:
        server.stop(2.0)


def test_lines_that_are_shown_name_the_socket(tmp_path: Path) -> None:
    session, address = load_session(ModelSource(models.scale(2.0))), Address.unix(tmp_path / "s")

    assert f"--unix-socket {tmp_path}/s http://localhost/v2/models/m/infer" in curl_line("m", session, address)
    assert f"'unix:{tmp_path}/s'" in client_lines("m", session, address)[1]


def test_other_connections_go_on_when_a_client_of_the_socket_breaks_off(tmp_path: Path, front: Front) -> None:
    address = Address.unix(tmp_path / "s")

    with serving_at(address, front), connect(address) as broken:
        broken.sendall(b"PRI * HTT")
        broken.shutdown(socket.SHUT_RDWR)
        assert ask(str(address)) == [2, 2, 2, 2]
