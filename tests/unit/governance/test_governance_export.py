"""Export and verify as an operator does: from a state folder, by the two commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.fakes.evidence_world import DEFINITION, World, keys_of_all

from holdfast.cli.main import main
from holdfast.clock import SystemClock
from holdfast.evidence.layout import read_evidence
from holdfast.trust.keys import PrivateKey
from holdfast.wire.convert import from_bytes
from holdfast.wire.messages import LedgerEntry
from holdfast_federation.ledger.export import collect_evidence
from holdfast_federation.server.build import Core, open_core
from holdfast_federation.server.settings import CoordinatorSettings
from holdfast_federation.server.state import Principals, create_state, open_state

PRINCIPALS = keys_of_all()


@pytest.fixture
def core(tmp_path: Path) -> Core:
    """A coordinator's state folder whose ledger holds the entries of the world, by its own keys."""
    sites = {name: PRINCIPALS[f"site-{name}"].public_key for name in ("north", "south")}
    people = Principals((PRINCIPALS["author"].public_key,), (PRINCIPALS["approver"].public_key,), sites)
    state = create_state(tmp_path / "state", "plant7.example", people, SystemClock())
    return open_core(open_state(state.path), CoordinatorSettings(), SystemClock())


def fill(core: Core) -> World:
    own = {role: core.authority.key(role) for role in ("ledger", "run", "assignment")}
    world = World(PRINCIPALS | own)
    with core.database.write() as cx:
        for data in world.log:
            core.ledger.append(cx, from_bytes(LedgerEntry, data))
    return world


def roots(core: Core, folder: Path) -> list[str]:
    """`--root` arguments as an operator would give them: a folder and files."""
    arguments = ["--root", str(core.state.authority)]
    for name in ("author", "approver", "site-north", "site-south"):
        path = folder / f"{name}.pub"
        path.write_text(PRINCIPALS[name].public_key.to_pem())
        arguments += ["--root", str(path)]
    return arguments


def test_collected_evidence_holds_the_log_as_it_was_appended(core: Core) -> None:
    world = fill(core)

    evidence = collect_evidence(core.ledger, (), exported_utc_ns=1)

    assert list(evidence.entries) == world.log
    assert evidence.proofs[3] == core.ledger.inclusion_proof(3, len(world.log))
    assert evidence.origin == core.ledger.origin


def test_collected_evidence_of_an_empty_log(core: Core) -> None:
    assert collect_evidence(core.ledger, (), exported_utc_ns=1).entries == ()


def test_export_and_verify_by_command(core: Core, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(core)
    file, card = tmp_path / "pilot.evidence", tmp_path / "scorecard.yaml"
    card.write_text(yaml.safe_dump(DEFINITION))

    assert main(["evidence", "export", str(core.state.path), "-o", str(file), "--scorecard", str(card)]) == 0
    shown = capsys.readouterr().out
    assert "was it worth it" in shown
    assert "? yes" in shown

    assert main(["evidence", "verify", str(file)]) == 1
    assert "consistent, NOT authenticated" in capsys.readouterr().out
    assert main(["evidence", "verify", str(file), *roots(core, tmp_path)]) == 0
    assert "consistent and authenticated: 35 entries of plant7.example/ledger" in capsys.readouterr().out
    assert main(["evidence", "verify", str(file), "--root", str(core.state.authority), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["consistent"] is True
    assert {each["role"] for each in document["not_roots"]} == {"author", "approver", "site"}
    assert document["figures"]["fleet"]["requests"]["ok"] == 110

    data = bytearray(file.read_bytes())
    data[5_000] ^= 1
    file.write_bytes(data)
    assert main(["evidence", "verify", str(file), *roots(core, tmp_path)]) == 1
    assert "byte 5000 of the file" in capsys.readouterr().out


def test_export_works_while_the_coordinator_has_the_database_open(core: Core, tmp_path: Path) -> None:
    fill(core)
    evidence = tmp_path / "e"

    with core.database.read():
        assert main(["evidence", "export", str(core.state.path), "-o", str(evidence), "--json"]) == 0

    assert read_evidence(evidence.read_bytes()).tree_size == 35


def test_export_writes_a_log_that_does_not_hold_and_says_so(
    core: Core, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = fill(core)
    world.keys["device-n1"] = PrivateKey.generate("ed25519")
    world.window("n1", {"ok": 1}, [0.1])
    with core.database.write() as cx:
        core.ledger.append(cx, from_bytes(LedgerEntry, world.log[-1]))

    assert main(["evidence", "export", str(core.state.path), "-o", str(tmp_path / "e")]) == 1

    assert "the log does not hold: chains" in capsys.readouterr().err
    assert (tmp_path / "e").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "missing.evidence"], "cannot read the evidence file"),
        (["verify", __file__, "--root", "missing/site.pub"], "cannot read the root key"),
        (["verify", __file__, "--root", "king=" + __file__], "no role"),
        (["verify", __file__, "--root", str(Path(__file__).parent)], "no <role>.pub"),
        (["export", "missing", "-o", "x"], "not a coordinator's state folder"),
        (["export", "missing", "-o", "x", "--scorecard", "missing.yaml"], "cannot read the scorecard"),
    ],
    ids=["no_file", "no_key", "no_such_role", "folder_without_keys", "no_state", "no_scorecard"],
)
def test_commands_refuse(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evidence", *arguments]) == 2

    assert message in capsys.readouterr().err
