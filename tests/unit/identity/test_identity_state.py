"""A state folder is used by one agent of a version that knows it, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from holdfast.errors import StateError
from holdfast.identity.state import create_state, is_owned, open_state, owned


def test_a_new_folder_is_made_and_opened_again(tmp_path: Path) -> None:
    state = create_state(tmp_path / "state")

    assert open_state(tmp_path / "state") == state
    assert state.identity.is_dir()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_state_folder_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    create_state(tmp_path / "state")
    (tmp_path / "state" / "schema_version").write_text("999\n")

    with pytest.raises(StateError, match="newer version"):
        create_state(tmp_path / "state")

    assert (tmp_path / "state" / "schema_version").read_text() == "999\n"


@pytest.mark.parametrize("content", ["", "one", "-1"])
def test_state_folder_without_a_version_number_is_refused(tmp_path: Path, content: str) -> None:
    create_state(tmp_path / "state")
    (tmp_path / "state" / "schema_version").write_text(content)

    with pytest.raises(StateError, match="version number"):
        open_state(tmp_path / "state")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_state_folder_not_writable_by_mode_is_refused(tmp_path: Path) -> None:
    create_state(tmp_path / "state")
    (tmp_path / "state").chmod(0o500)

    with pytest.raises(StateError, match="not writable"):
        open_state(tmp_path / "state")


def test_state_folder_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create_state(tmp_path / "state")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # what a read-only mount answers, also to root

    with pytest.raises(StateError, match="not writable"):
        open_state(tmp_path / "state")


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(StateError):
        create_state(tmp_path / "file" / "state")


def test_a_folder_with_other_things_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").write_text("x")

    with pytest.raises(StateError, match="no state folder"):
        create_state(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="holdfast agent enrol"):
        open_state(tmp_path / "nothing")


def test_only_one_agent_owns_a_folder(tmp_path: Path) -> None:
    state = create_state(tmp_path / "state")

    with owned(state):
        assert is_owned(state)
        with pytest.raises(StateError, match="another agent"):
            with owned(state):
                pass

    assert not is_owned(state)
