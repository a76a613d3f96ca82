"""A site makes its key once, signs policies with growing numbers, and refuses sources it does not understand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fakes.policies import NOW_UTC_NS

from holdfast.cli.command import EXIT_OK
from holdfast.cli.site import INIT, SIGN_POLICY
from holdfast.errors import PolicyError, StateError
from holdfast.policy.document import verify_policy
from holdfast.site.folder import SOURCE_NAME, init_site, last_number, sign


def test_the_template_signs_as_it_is_and_forbids_every_round(tmp_path: Path) -> None:
    key = init_site(tmp_path / "north", 'North "A"')

    signed = sign(tmp_path / "north", now_utc_ns=NOW_UTC_NS)

    policy = verify_policy(signed.path.read_bytes(), key, now_utc_ns=NOW_UTC_NS, installed_number=None).policy
    assert policy.site == 'North "A"'
    assert policy.rounds.purposes == ()
    assert not policy.reports.data
    assert policy.rounds.require_clip


def test_each_signed_policy_has_the_next_number(tmp_path: Path) -> None:
    init_site(tmp_path, "north")

    numbers = [sign(tmp_path, now_utc_ns=NOW_UTC_NS).policy.policy.number for _ in range(3)]

    assert numbers == [1, 2, 3]
    assert last_number(tmp_path) == 3


def test_a_number_is_never_signed_twice(tmp_path: Path) -> None:
    init_site(tmp_path, "north")
    sign(tmp_path, now_utc_ns=NOW_UTC_NS, number=5)

    with pytest.raises(StateError, match="signed before"):
        sign(tmp_path, now_utc_ns=NOW_UTC_NS, number=5)


def test_a_second_init_does_not_touch_the_key(tmp_path: Path) -> None:
    init_site(tmp_path, "north")
    before = (tmp_path / "site").read_bytes()

    with pytest.raises(StateError):
        init_site(tmp_path, "north")

    assert (tmp_path / "site").read_bytes() == before


@pytest.mark.parametrize(
    "line",
    ["unknown = 1", "valid_days = 0", "number = 7", "valid_days = 99999", "site = ", "[rounds]\nallow = true"],
)
def test_a_bad_source_is_refused_and_nothing_is_signed(tmp_path: Path, line: str) -> None:
    init_site(tmp_path, "north")
    (tmp_path / SOURCE_NAME).write_text(f'site = "north"\n{line}\n')

    with pytest.raises(PolicyError):
        sign(tmp_path, now_utc_ns=NOW_UTC_NS)

    assert last_number(tmp_path) == 0


def test_a_folder_without_a_site_is_named(tmp_path: Path) -> None:
    with pytest.raises(StateError, match="key file"):
        sign(tmp_path, now_utc_ns=NOW_UTC_NS)


def test_the_commands_tell_machines_where_things_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    folder = tmp_path / "north"
    assert INIT.run(argparse.Namespace(folder=folder, name=None, json=True)) == EXIT_OK
    made = json.loads(capsys.readouterr().out)
    assert SIGN_POLICY.run(argparse.Namespace(folder=folder, source=None, number=None, json=True)) == EXIT_OK
    signed = json.loads(capsys.readouterr().out)

    assert (made["site"], signed["number"]) == ("north", 1)
    assert Path(made["public_key"]).exists()
    assert Path(signed["path"]).exists()
