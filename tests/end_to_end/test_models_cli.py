"""From a trained model to a device that serves it, by the commands that people type; the coordinator is a real one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import models
from tests.fakes.clock import FakeClock

from holdfast.bundle.verify import read_bundle
from holdfast.cli.main import main
from holdfast.clock import SystemClock
from holdfast.inference.pool import ModelPool
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.models.activation import ActivationTrust
from holdfast.models.install import Installer, Surroundings
from holdfast.models.store import ModelStore
from holdfast.trust.keys import ED25519, PrivateKey, PublicKey
from holdfast.wire.messages import FetchRequest, FetchResponse, ModelEvent
from holdfast_federation.devices.records import DeviceRecord
from holdfast_federation.server.build import Coordinator, Core, Parts
from holdfast_federation.server.models_part import ModelsPart, models_only, open_models
from holdfast_federation.server.settings import CoordinatorSettings

SETTINGS = CoordinatorSettings(enrolment_listen="127.0.0.1:0", device_listen="127.0.0.1:0", page_listen="127.0.0.1:0")
ROWS = np.random.default_rng(1).standard_normal((30, 5)).astype(np.float32)
Run = Callable[..., dict[str, object]]


class Place:
    """A folder with everybody's keys and a running coordinator with one device on its books."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        self.core: Core | None = None
        self.part: ModelsPart | None = None
        self.coordinator = Coordinator(self.state, SETTINGS, SystemClock(), self._parts)

    def _parts(self, core: Core) -> Parts:
        self.core, self.part = core, open_models(core)
        record = DeviceRecord(
            "device-1", "north", "one", PrivateKey.generate(ED25519).public_key.spki_der, 1, "", "0" * 64, 1
        )
        with core.database.write() as cx:
            core.devices.add(cx, record)
        return models_only(core)

    def key(self, path: str) -> PublicKey:
        return PublicKey.from_pem((self.folder / path).read_text())

    def trust(self) -> ActivationTrust:
        assert self.core is not None
        authority = self.core.authority
        return ActivationTrust(
            device_id="device-1",
            authors=(self.key("author/author.pub"),),
            approvers=(self.key("alice/approver.pub"),),
            run_keys=(authority.key("run").public_key,),
            assignment_keys=(authority.key("assignment").public_key,),
        )


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*words: str, code: int = 0) -> dict[str, object]:
        got = main([*words, "--json"])
        out, err = capsys.readouterr()
        assert got == code, (out, err)
        said: dict[str, object] = json.loads(out)
        return said

    return run


@pytest.fixture
def place(tmp_path: Path, run: Run) -> Iterator[Place]:
    (tmp_path / "triage.onnx").write_bytes(models.he_mlp((5, 7, 3)))
    np.savez(tmp_path / "rows.npz", input=ROWS, y=np.zeros(30, np.int64))
    run("key", "create", "author", "author")
    run("key", "create", "approver", "alice")
    keys = ("--author-key", "author/author.pub", "--approver-key", "alice/approver.pub")
    run("coordinator", "init", "state", "--trust-domain", "test.example", *keys)
    place = Place(tmp_path)
    place.coordinator.start()
    yield place
    place.coordinator.stop()


def pack(run: Run) -> str:
    facts = ("--version", "1", "--owner", "o", "--purpose", "p", "--labels", "a,b,c", "--max-update-norm", "2")
    said = run("bundle", "pack", "triage.onnx", "--key", "author", "--samples", "rows.npz", *facts, "-o", "b.bundle")
    return str(said["digest"])


def test_model_goes_from_its_author_to_a_device(run: Run, place: Place) -> None:
    digest = pack(run)
    assert run("bundle", "verify", "b.bundle", "--author-key", "author/author.pub")["trusted"] is True
    run("coordinator", "models", "state", "add", "b.bundle")
    refused = run("coordinator", "models", "state", "assign", "triage", "1", "--all", code=1)
    assert "has no approval" in json.dumps(refused)
    run("approve", "b.bundle", "--key", "alice", "-o", "yes.json")
    assert run("coordinator", "models", "state", "approve", "yes.json")["state"] == "approved"
    assert run("coordinator", "models", "state", "assign", "triage", "1", "--all")["numbers"] == {"device-1": 1}

    assert place.part is not None
    rollout = place.part.rollout

    def fetch(request: FetchRequest) -> FetchResponse:
        assert rollout.may_fetch("device-1", request.blob_sha256)
        return rollout.piece(request.blob_sha256, request.offset, request.max_bytes)

    events: list[ModelEvent] = []
    pool = ModelPool()
    clock = FakeClock(SystemClock().utc_ns())
    surroundings = Surroundings(fetch, events.append, clock)
    installer = Installer(ModelStore(place.folder / "device"), pool, place.trust(), surroundings)
    installer.handle(rollout.deliveries("device-1", installer.number()))

    assert [event.event for event in events] == ["staged", "activated"]
    assert installer.active() == {"triage": digest}
    answer = pool.predict_batch([TensorRequest("triage", "1", "r", {"input": ROWS[:2]})])[0]
    assert isinstance(answer, TensorResponse)
    golden = read_bundle((place.folder / "b.bundle").read_bytes())
    assert golden.manifest.labels == ("a", "b", "c")
    (listed,) = run("coordinator", "models", "state")["models"]  # type: ignore[misc]  # one JSON object in a list
    assert (listed["state"], listed["assigned_to"], listed["active_on"]) == ("approved", 1, 0)


def test_rejection_is_taken_in_and_outweighs_the_approval(run: Run, place: Place) -> None:
    digest = pack(run)
    run("coordinator", "models", "state", "add", "b.bundle")
    run("approve", digest, "--key", "alice", "-o", "yes.json")
    run("approve", digest, "--key", "alice", "--reject", "--comment", "not yet", "-o", "no.json")

    run("coordinator", "models", "state", "approve", "yes.json")

    assert run("coordinator", "models", "state", "approve", "no.json")["state"] == "rejected"


def test_verify_without_a_key_is_no_success(run: Run, place: Place) -> None:
    pack(run)

    said = run("bundle", "verify", "b.bundle", code=1)

    assert "NOT authenticated" in str(said["verdict"])


def test_verify_with_another_authors_key_names_it(run: Run, place: Place) -> None:
    pack(run)
    run("key", "create", "author", "stranger")

    said = run("bundle", "verify", "b.bundle", "--author-key", "stranger/author.pub", code=1)

    assert "HF-TRUST-001" in json.dumps(said)


def test_damaged_bundle_is_refused_by_every_command(run: Run, place: Place) -> None:
    pack(run)
    data = (place.folder / "b.bundle").read_bytes()
    (place.folder / "b.bundle").write_bytes(data[:-10])

    for words in (
        ("bundle", "verify", "b.bundle"),
        ("bundle", "inspect", "b.bundle"),
        ("approve", "b.bundle", "--key", "alice"),
    ):
        assert "HF-FORMAT" in json.dumps(run(*words, code=1))
    assert "HF-FORMAT" in json.dumps(run("coordinator", "models", "state", "add", "b.bundle", code=1))


def test_inspect_shows_the_manifest(run: Run, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    digest = pack(run)

    assert run("bundle", "inspect", "b.bundle")["digest"] == digest
    assert main(["bundle", "inspect", "b.bundle"]) == 0
    assert "input    input float32[?, 5]" in capsys.readouterr().out


def test_samples_that_are_no_arrays_are_refused(run: Run, place: Place) -> None:
    (place.folder / "rows.npz").write_bytes(b"no arrays")
    facts = ("--version", "1", "--owner", "o", "--purpose", "p")

    said = run("bundle", "pack", "triage.onnx", "--key", "author", "--samples", "rows.npz", *facts, code=2)

    assert "is not an npz of plain arrays" in json.dumps(said)
