"""The command door: exit codes, errors for people and machines, missing extras, and how the log reads."""

from __future__ import annotations

import json
import logging

import pytest

from holdfast.cli.logs import FieldFormatter
from holdfast.cli.main import main, missing_extra


def test_help_lists_every_command_and_exits_0(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0

    shown = capsys.readouterr().out
    for command in (
        "agent",
        "approve",
        "bench",
        "bundle",
        "coordinator",
        "demo",
        "evidence",
        "rounds",
        "serve",
        "site",
    ):
        assert command in shown


def test_group_without_a_command_shows_its_help_and_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle"]) == 2

    assert "pack" in capsys.readouterr().out


def test_unknown_command_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fly"]) == 2

    assert "invalid choice" in capsys.readouterr().err


def test_error_reaches_a_machine_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "missing.onnx", "--json"]) == 1

    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "HF-MODEL-001"
    assert "missing.onnx" in error["message"]


def test_wrong_log_level_is_refused_with_what_is_allowed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOLDFAST_LOG_LEVEL", "loud")

    assert main(["--help"]) == 2
    assert "DEBUG | INFO | WARNING | ERROR" in capsys.readouterr().err


def test_missing_module_names_the_extra_that_brings_it() -> None:
    error = missing_extra(ModuleNotFoundError("No module named 'flwr'", name="flwr.proto"))

    assert error is not None
    assert "holdfast[federated]" in str(error)


def test_other_missing_module_is_a_bug_of_ours() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'holdfast.gone'", name="holdfast.gone")) is None


def test_log_line_carries_its_fields_and_cannot_be_forged() -> None:
    record = logging.makeLogRecord(
        {"name": "room", "levelname": "WARNING", "msg": "refused", "device": "d-1", "why": "no\n2026 forged line"}
    )

    line = FieldFormatter().format(record)

    assert "room: refused  device=d-1 why=" in line
    assert "\n" not in line
