"""The agent's commands, in process: what they print, and what they refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.enrolled import SitePrincipals

from holdfast.cli.command import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from holdfast.cli.main import main


@pytest.fixture
def coordinator() -> Iterator[FakeCoordinator]:
    with FakeCoordinator() as running:
        yield running


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    principals = SitePrincipals()
    arguments = []
    for role in ("site", "author", "approver"):
        path = tmp_path / f"{role}.pub"
        path.write_text(getattr(principals, role).public_key.to_pem())
        arguments += [f"--{role}-key", str(path)]
    return arguments


def test_enrol_then_status(
    coordinator: FakeCoordinator, tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    state, token = str(tmp_path / "state"), tmp_path / "token"
    token.write_text(coordinator.token().to_text() + "\n")

    assert main(["agent", "enrol", state, "--token-file", str(token), *keys, "--json"]) == EXIT_OK
    enrolled = json.loads(capsys.readouterr().out)
    assert main(["agent", "status", state, "--json"]) == EXIT_OK
    status = json.loads(capsys.readouterr().out)

    assert status["device_id"] == enrolled["device_id"]
    assert (status["running"], status["records_waiting"], status["policy_number"]) == (False, 0, None)


def test_enrol_with_a_cut_token_is_refused_before_anything_is_made(
    coordinator: FakeCoordinator, tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    token = coordinator.token().to_text()

    code = main(["agent", "enrol", str(tmp_path / "state"), "--token", token[:-30], *keys])

    shown = capsys.readouterr()
    assert code == EXIT_FAILED
    assert "not a join token" in shown.err
    assert token[:-30] not in shown.err
    assert not (tmp_path / "state").exists()
    assert coordinator.seen == []


def test_enrol_with_a_file_that_is_no_key_names_it(
    coordinator: FakeCoordinator, tmp_path: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(keys[1]).write_text("not a key")

    code = main(["agent", "enrol", str(tmp_path / "state"), "--token", coordinator.token().to_text(), *keys])

    assert code == EXIT_USAGE
    assert "site.pub is not a public key file" in capsys.readouterr().err


def test_run_in_a_folder_that_is_not_enrolled_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "run", str(tmp_path / "nothing")]) == EXIT_USAGE
    assert "holdfast agent enrol" in capsys.readouterr().err


def test_key_create_makes_a_key_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "create", "author", str(tmp_path / "a"), "--json"]) == EXIT_OK
    made = json.loads(capsys.readouterr().out)

    assert Path(made["public_key"]).exists()
    assert main(["key", "create", "author", str(tmp_path / "a")]) == EXIT_USAGE
