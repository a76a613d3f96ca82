"""The agent as a whole against a coordinator in memory: serves, reports, obeys its site, comes back after a stop."""

from __future__ import annotations

import dataclasses
import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.fakes import served_models as models
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.enrolled import SitePrincipals, enrol_device
from tests.fakes.policies import DAY_NS, make_policy

from holdfast.agent import Agent, open_parts, read_status
from holdfast.clock import SystemClock
from holdfast.config import AgentConfig
from holdfast.errors import PolicyError, SettingsError, StateError, UsageError
from holdfast.identity.device import Device
from holdfast.identity.state import open_state
from holdfast.inference.session import ModelSource, load_session
from holdfast.lifecycle import Stop, run
from holdfast.observe.objective import MIN_REQUESTS
from holdfast.policy.document import sign_policy
from holdfast.settings import load
from holdfast.wire.messages import Report

CONFIG = AgentConfig(listen="127.0.0.1:0", window_s=0.1, check_in_interval_s=0.2)
DEADLINE_S = 20.0


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    with FakeCoordinator() as running:
        yield running


@contextmanager
def running_agent(path: Path, config: AgentConfig = CONFIG) -> Iterator[tuple[Agent, str]]:
    stop = Stop()
    parts = open_parts(open_state(path), config, SystemClock())
    agent = Agent(parts)
    address = agent.start()
    thread = threading.Thread(target=run, args=(agent.tasks(), stop))
    thread.start()
    try:
        yield agent, str(address)
    finally:
        stop.set()
        thread.join(30)
        agent.stop()
        parts.close()


def wait_for(condition: Callable[[], bool]) -> None:
    clock = SystemClock()
    until_s = clock.monotonic_s() + DEADLINE_S
    never = threading.Event()
    while not condition():
        assert clock.monotonic_s() < until_s, "the condition was not met in time"
        never.wait(0.02)


def reports(coordinator: FakeCoordinator, device: Device) -> list[Report]:
    chain = coordinator.ingest.chains[device.record.device_id]
    return [chain.reports[seq] for seq in sorted(chain.reports)]


def ask(address: str, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def test_an_enrolled_device_without_a_model_serves_reports_and_checks_in(
    coordinator: FakeCoordinator, tmp_path: Path
) -> None:
    device = enrol_device(coordinator, tmp_path / "state")

    with running_agent(tmp_path / "state") as (_, address):
        assert ask(address, "/v2/health/live")[0] == 200
        status, body = ask(address, "/v2/models/nothing/infer", b'{"inputs":[]}')
        wait_for(lambda: any(r.operational and r.operational.models for r in reports(coordinator, device)))
        wait_for(lambda: len(coordinator.check_ins) >= 2)

    assert status in (400, 404)
    assert b"nothing" in body
    (window,) = [r.operational for r in reports(coordinator, device) if r.operational and r.operational.models]
    assert [(m.model, dict(m.outcomes)) for m in window.models] == [("", {"HF-REQUEST-002": 1})]
    later = [r.operational for r in reports(coordinator, device) if r.operational and r.operational.bytes_out]
    assert later[-1].bytes_out["report"] > 0
    assert coordinator.ingest.chains[device.record.device_id].forks == []


def test_a_dropped_policy_is_obeyed_and_told(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    principals = SitePrincipals()
    device = enrol_device(coordinator, tmp_path / "state", principals=principals)
    now = SystemClock().utc_ns()
    policy = make_policy(issued_utc_ns=now, expires_utc_ns=now + DAY_NS)

    with running_agent(tmp_path / "state"):
        document = sign_policy(policy, principals.site)
        (tmp_path / "state" / "policy" / "new.json").write_bytes(document)
        wait_for(lambda: any(r.policy_change for r in reports(coordinator, device)))
        wait_for(lambda: coordinator.check_ins[-1].policy_digest != "")

    (change,) = [r.policy_change for r in reports(coordinator, device) if r.policy_change]
    assert (change.number, change.document) == (1, document)
    assert reports(coordinator, device)[-1].policy_digest == change.policy_digest


def test_a_stopped_agent_goes_on_with_its_chain(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    device = enrol_device(coordinator, tmp_path / "state")
    for _ in range(2):
        before = len(reports(coordinator, device))
        with running_agent(tmp_path / "state"):
            wait_for(lambda before=before: len(reports(coordinator, device)) >= before + 2)  # type: ignore[misc]

    chain = reports(coordinator, device)

    assert [r.seq for r in chain] == list(range(1, len(chain) + 1))
    assert len({r.boot_id for r in chain}) == 2


def test_the_device_serves_and_measures_while_the_coordinator_is_gone(tmp_path: Path) -> None:
    with FakeCoordinator() as coordinator:
        enrol_device(coordinator, tmp_path / "state")

    with running_agent(tmp_path / "state") as (_, address):
        state = open_state(tmp_path / "state")
        wait_for(lambda: int(str(read_status(state, SystemClock())["records_waiting"])) >= 3)
        assert ask(address, "/v2/health/live")[0] == 200


def test_status_is_read_whether_or_not_an_agent_runs(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    device = enrol_device(coordinator, tmp_path / "state")

    status = read_status(open_state(tmp_path / "state"), SystemClock())

    assert status["device_id"] == device.record.device_id
    assert (status["running"], status["records"], status["policy_number"]) == (False, 0, None)
    json.dumps(status)


def test_a_policy_of_another_site_is_refused_at_the_start(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    enrol_device(coordinator, tmp_path / "state")
    parts = open_parts(open_state(tmp_path / "state"), CONFIG, SystemClock())

    with pytest.raises(PolicyError, match="pinned key"):
        parts.policy.install(sign_policy(make_policy(), SitePrincipals().site), parts.journal.append)
    parts.close()


def test_a_folder_that_is_not_enrolled_is_refused(tmp_path: Path) -> None:
    from holdfast.identity.state import create_state

    with pytest.raises(StateError, match="not enrolled"):
        open_parts(create_state(tmp_path / "state"), CONFIG, SystemClock())


@pytest.mark.parametrize(
    "text", ["listenn = '127.0.0.1:0'", "window_s = 0", "window_s = '60'", "log_level = 'loud'", "journal_mib = 0"]
)
def test_a_bad_setting_refuses_the_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "agent.toml").write_text(text)

    with pytest.raises(SettingsError):
        load(AgentConfig, path=tmp_path / "agent.toml", environment={})


def test_a_port_in_use_is_named_and_what_was_measured_is_kept(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    device = enrol_device(coordinator, tmp_path / "device")
    with running_agent(tmp_path / "device"):
        wait_for(lambda: len(reports(coordinator, device)) > 1)
    before = read_status(open_state(tmp_path / "device"), SystemClock())["records"]

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname()[:2])
        with pytest.raises(UsageError, match=f"port {taken.getsockname()[1]} on 127.0.0.1 is in use"):
            with running_agent(tmp_path / "device", dataclasses.replace(CONFIG, listen=address)):
                pytest.fail("it started")

    assert read_status(open_state(tmp_path / "device"), SystemClock())["records"] == before
    with running_agent(tmp_path / "device"):  # as soon as it may listen again, its chain goes on
        wait_for(lambda: len(reports(coordinator, device)) > int(str(before)))


def test_a_path_setting_is_read_from_toml_and_flag(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("data = '/data/a.npz'")

    assert load(AgentConfig, path=tmp_path / "agent.toml", environment={}).data == Path("/data/a.npz")
    assert load(AgentConfig, environment={}).data is None


def test_served_requests_are_held_against_the_objective(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    enrol_device(coordinator, tmp_path / "state")
    config = dataclasses.replace(CONFIG, p99_objective_ms=0.001)
    parts = open_parts(open_state(tmp_path / "state"), config, SystemClock())
    parts.pool.swap("m", "1", load_session(ModelSource(models.scale(2.0))))
    agent = Agent(parts)
    address = str(agent.start())
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}'

    try:
        assert parts.objective is not None
        for _ in range(MIN_REQUESTS):
            assert ask(address, "/v2/models/m/infer", body)[0] == 200
        assert parts.objective.look(), "no request is answered in a microsecond"
    finally:
        agent.stop()
        parts.close()


def test_without_an_objective_nobody_looks(coordinator: FakeCoordinator, tmp_path: Path) -> None:
    enrol_device(coordinator, tmp_path / "state")

    parts = open_parts(open_state(tmp_path / "state"), CONFIG, SystemClock())

    parts.close()
    assert parts.objective is None
