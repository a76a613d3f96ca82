"""The agent's end of the worker's socket: one process, three requests, bounded, and codes instead of reasons."""

from __future__ import annotations

import http.client
import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock

from holdfast.errors import LinkError
from holdfast.learn.agent_socket import AgentSocket
from holdfast.learn.authority import Ground, RoundAuthority
from holdfast.learn.host import PAUSE_NAME, RoundHost, WorkerSettings
from holdfast.learn.pause_flag import PauseFlag
from holdfast.learn.socket_server import Answer, SocketServer
from holdfast.policy.evaluate import ALLOWED, Decision
from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.convert import to_bytes
from holdfast.wire.limits import MAX_FLEET_BODY_BYTES
from holdfast.wire.messages import OFFER_TYPE, FleetCallRequest, FleetCallResponse, PrivacyTerms, RoundOffer

KEY = PrivateKey.generate(ED25519)


class FakeLink:
    """Keeps the calls; can be cut."""

    def __init__(self) -> None:
        self.calls: list[FleetCallRequest] = []
        self.cut = False

    def fleet_call(self, request: FleetCallRequest) -> FleetCallResponse:
        if self.cut:
            raise LinkError("cut")
        self.calls.append(request)
        return FleetCallResponse(200, {"content-type": "x"}, b"answer")


@pytest.fixture
def link() -> FakeLink:
    return FakeLink()


@pytest.fixture
def host(link: FakeLink, tmp_path: Path) -> RoundHost:
    authority = RoundAuthority(
        "a", KEY, KEY.public_key, lambda *_: Decision(False, "no_policy"), lambda _: None, lambda _: None
    )
    return RoundHost(link, authority, WorkerSettings(tmp_path / "key", tmp_path), FakeClock())


@pytest.mark.parametrize("path", ["get-fab", "register-node", "", "../sign", "/pull-messages", "pull-messages/"])
def test_a_call_that_is_not_one_of_the_nine_does_not_reach_the_link(host: RoundHost, link: FakeLink, path: str):
    assert host._answer(f"/fleet/{path}", {}, b"").status == 404
    assert link.calls == []


def test_a_call_is_carried_with_flowers_headers_only(host: RoundHost, link: FakeLink):
    answer = host._answer("/fleet/pull-messages", {"flwr-signature": "s", "host": "h", "cookie": "c"}, b"body")

    assert (answer.status, answer.body) == (200, b"answer")
    assert link.calls == [FleetCallRequest("", "pull-messages", {"flwr-signature": "s"}, b"body")]


def test_a_line_that_is_down_means_try_later(host: RoundHost, link: FakeLink):
    link.cut = True

    assert host._answer("/fleet/pull-messages", {}, b"").status == 503


@pytest.mark.parametrize("path", ["/", "/status", "/authorise/", "/SIGN"])
def test_any_other_path_is_unknown(host: RoundHost, path: str):
    assert host._answer(path, {}, b"").status == 404


@pytest.mark.parametrize(
    ("path", "body"), [("/sign", b"{}"), ("/sign", b"["), ("/authorise", b"\xff"), ("/authorise", b"{}")]
)
def test_garbage_is_answered_with_a_code(host: RoundHost, path: str, body: bytes):
    answer = host._answer(path, {}, body)

    assert answer.status == 400
    assert json.loads(answer.body)["code"].startswith("HF-")


def test_an_offer_that_was_answered_is_not_worked_on_again(link: FakeLink, tmp_path: Path):
    clock = FakeClock()
    terms = (bytes(32), 40, 1, 1, 0.1, 0, 50, "float32", PrivacyTerms(), clock.utc_ns(), clock.utc_ns() + 10**10)
    offer = to_bytes(sign_envelope(OFFER_TYPE, to_bytes(RoundOffer("r", 1, 1, "p", "evaluate", "m", "d", *terms)), KEY))
    ground = Ground(tmp_path / "bundle", tmp_path / "data", 60)
    authority = RoundAuthority("a", KEY, KEY.public_key, lambda *_: ALLOWED, lambda _: ground, lambda _: None)
    host = RoundHost(link, authority, WorkerSettings(tmp_path / "key", tmp_path), clock)
    first = host._answer("/authorise", {}, offer)
    fields = {
        **{name: json.loads(first.body)[name] for name in ("offer_sha256", "run_id", "round")},
        **{"codec": "", "array_sha256": "", "array_size_bytes": 0, "clip_norm_applied": 0.0},
        **{"sample_count": 15, "metrics": {"loss": 0.5}},
    }
    signed = host._answer("/sign", {}, json.dumps(fields).encode())

    again = host._answer("/authorise", {}, offer)

    assert (first.status, signed.status) == (200, 200)
    assert (again.status, json.loads(again.body)) == (403, {"code": "HF-ROUND-001"})
    assert host._answer("/sign", {}, json.dumps(fields).encode()).status == 200  # the same, if its answer was lost


def test_what_is_no_offer_starts_no_worker(host: RoundHost):
    host.handle([Envelope("x", b"\xff", ())])

    assert host.worker_pid == 0


class RunningProcess:
    """A worker that runs."""

    pid = 7

    def poll(self) -> None:
        return None


def test_worker_is_asked_to_pause_while_serving_needs_the_machine(host: RoundHost, tmp_path: Path):
    needs = iter([False, True, True, False])
    host._needs_machine = lambda: next(needs)
    host._process, host._folder = RunningProcess(), tmp_path
    seen = PauseFlag(tmp_path / PAUSE_NAME)

    states = []
    for _ in range(4):
        host.tend()
        states.append(seen.is_up())

    assert states == [False, True, True, False]


def test_worker_without_an_objective_is_never_asked_to_pause(host: RoundHost, tmp_path: Path):
    host._process, host._folder = RunningProcess(), tmp_path

    host.tend()

    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SocketServer]:
    server = SocketServer(tmp_path / "agent.sock", lambda path, headers, body: Answer(200, {}, body))
    server.start()
    yield server
    server.stop()


def test_the_allowed_process_is_answered(server: SocketServer, tmp_path: Path):
    server.allow(os.getpid())

    assert AgentSocket(str(tmp_path / "agent.sock")).fleet("x", {}, b"body").body == b"body"


def test_another_process_of_the_same_user_is_not_answered(server: SocketServer, tmp_path: Path):
    server.allow(1)

    with pytest.raises(OSError):
        AgentSocket(str(tmp_path / "agent.sock")).fleet("x", {}, b"body")


def test_the_socket_is_its_owners_alone(server: SocketServer, tmp_path: Path):
    assert stat.S_IMODE(os.stat(tmp_path / "agent.sock").st_mode) == 0o600


@pytest.mark.parametrize("length", ["-1", "x", str(MAX_FLEET_BODY_BYTES + 1)])
def test_a_body_of_no_or_too_large_a_size_is_refused_before_it_is_read(
    server: SocketServer, tmp_path: Path, length: str
):
    server.allow(os.getpid())
    connection = http.client.HTTPConnection("agent")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(tmp_path / "agent.sock"))

    connection.putrequest("POST", "/sign")
    connection.putheader("content-length", length)
    connection.endheaders()

    assert connection.getresponse().status == 413
    connection.close()
