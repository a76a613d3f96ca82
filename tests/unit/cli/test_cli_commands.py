"""Where sub-commands are found: the table equals what pyproject.toml tells others, and other packages add theirs."""

from __future__ import annotations

import importlib.metadata
import tomllib
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from holdfast.cli.command import Command
from holdfast.cli.commands import ENTRY_POINT_GROUP, OWN, known_commands, load_object

PYPROJECT = Path(__file__).parents[3] / "pyproject.toml"


def others(**values: str) -> list[EntryPoint]:
    return [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in values.items()]


def installed(monkeypatch: pytest.MonkeyPatch, points: Iterable[EntryPoint]) -> list[str]:
    """Put these entry points in place of the installed ones; the list fills with the groups that are asked for."""
    asked: list[str] = []

    def entry_points(group: str) -> Iterable[EntryPoint]:
        asked.append(group)
        return points

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
    return asked


def test_the_table_equals_the_entry_points_of_this_package() -> None:
    declared = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["entry-points"][ENTRY_POINT_GROUP]

    assert dict(OWN) == declared


def test_every_name_of_the_table_is_a_command() -> None:
    for where in set(OWN.values()):
        assert isinstance(load_object(where), Command), where


@pytest.mark.parametrize("words", [["serve", "model.onnx"], ["bundle", "pack", "x"], ["serve"]])
def test_a_name_of_the_table_is_found_without_reading_what_is_installed(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    asked = installed(monkeypatch, others(fly="elsewhere:FLY"))

    assert known_commands(words) == dict(OWN)
    assert asked == []


@pytest.mark.parametrize("words", [["fly"], [], ["bundle"], ["bundle", "fly"]])
def test_a_command_of_another_package_is_found_by_its_name_and_in_help(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    asked = installed(monkeypatch, others(fly="elsewhere:FLY"))

    assert known_commands(words)["fly"] == "elsewhere:FLY"
    assert asked == [ENTRY_POINT_GROUP]


def test_another_package_cannot_take_a_name_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, others(serve="elsewhere:SERVE"))

    assert known_commands([])["serve"] == OWN["serve"]
