from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.coordinator_process import CoordinatorProcess
from tests.fakes.raw_device import RawDevice

from holdfast.cli.main import main
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.enrolment import JoinToken

TRUST_DOMAIN = "plant7.example"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key.pub"
    path.write_text(PrivateKey.generate(ED25519).public_key.to_pem())
    return path


@pytest.fixture
def state(tmp_path: Path, key_file: Path) -> Path:
    path = tmp_path / "state"
    keys = ["--author-key", str(key_file), "--approver-key", str(key_file), "--site-key", f"north={key_file}"]
    assert main(["coordinator", "init", str(path), "--trust-domain", TRUST_DOMAIN, *keys]) == 0
    return path


@pytest.fixture
def running(state: Path) -> Iterator[CoordinatorProcess]:
    process = CoordinatorProcess(state)
    process.wait_ready()
    yield process
    if process.process.poll() is None:
        process.kill()


def test_init_says_what_auditors_need(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"

    assert main(["coordinator", "init", str(state), "--trust-domain", TRUST_DOMAIN, "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["ledger_key"] == str(state / "authority" / "ledger.pub")
    assert (facts["trust_domain"], len(facts["authority_sha256"])) == (TRUST_DOMAIN, 64)


def test_init_keeps_the_keys_of_others(state: Path) -> None:
    folders = {path.parent.name for path in (state / "principals").glob("*/*.pem")}

    assert folders == {"author", "approver", "site"}


def test_init_twice_is_refused(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "init", str(state), "--trust-domain", TRUST_DOMAIN]) == 2
    assert "HF-USE-004" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--site-key", "north"], ["--site-key", "North=KEY"], ["--author-key", "missing"], ["--trust-domain", "Ü"]],
)
def test_init_with_bad_arguments_is_refused(
    tmp_path: Path, key_file: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "new"
    arguments = [each.replace("KEY", str(key_file)) for each in arguments]

    code = main(["coordinator", "init", str(path), "--trust-domain", TRUST_DOMAIN, *arguments])

    assert code != 0
    assert "error HF-" in capsys.readouterr().err
    assert not (path / "schema_version").exists()


def test_run_on_a_folder_that_is_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "run", str(tmp_path)]) == 2
    assert "coordinator init" in capsys.readouterr().err


def test_run_with_an_unknown_setting_is_refused(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (state / "settings.toml").write_text('listen = "x"\n')

    assert main(["coordinator", "run", str(state)]) == 2
    assert "unknown setting 'listen'" in capsys.readouterr().err


def test_run_with_a_newer_database_is_refused(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cx = sqlite3.connect(state / "holdfast.db")
    cx.execute("PRAGMA user_version = 99")
    cx.close()

    assert main(["coordinator", "run", str(state)]) == 2
    assert "schema 99" in capsys.readouterr().err


def test_commands_without_a_running_coordinator_say_so(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["coordinator", "token", str(state), "--site", "north"]) == 2
    assert "coordinator run" in capsys.readouterr().err


def test_token_enrol_list_revoke_stop(running: CoordinatorProcess, capsys: pytest.CaptureFixture[str]) -> None:
    state = str(running.state)
    capsys.readouterr()

    assert main(["coordinator", "token", state, "--site", "north", "--name", "ward-3", "--ttl", "60"]) == 0
    token = JoinToken.from_text(capsys.readouterr().out.strip())
    assert token.address == running.addresses["enrolment"]
    device = RawDevice()
    device.enrol(token, (running.state / "authority" / "ca.pem").read_text(), TRUST_DOMAIN)

    assert main(["coordinator", "devices", state, "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["devices"]
    assert (row["device_id"], row["name"], row["revoked_utc_ns"]) == (device.device_id, "ward-3", None)

    assert main(["coordinator", "devices", state, "revoke", device.device_id, "--reason", "stolen"]) == 0
    assert "is revoked" in capsys.readouterr().out
    assert main(["coordinator", "devices", state]) == 0
    assert "revoked" in capsys.readouterr().out
    assert main(["coordinator", "devices", state, "revoke", "nobody"]) == 1
    assert main(["coordinator", "devices", state, "revoke"]) == 2
    assert main(["coordinator", "token", state, "--site", "west"]) == 2

    assert running.stop() == 0
    assert not (running.state / "admin.sock").exists()
