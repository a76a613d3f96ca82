"""kill -9 of the agent in every phase of an installation: what comes back is the last good model or the new one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import bundles
from tests.fakes.bundles import BlobServer
from tests.fakes.clock import FakeClock

from holdfast.bundle.verify import read_bundle
from holdfast.inference.pool import ModelPool
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.models import slots as table
from holdfast.models.install import Installer, Surroundings
from holdfast.models.slots import Slot, Slots
from holdfast.models.store import ModelStore
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import FetchRequest, FetchResponse

EXPECTED = {"1": [1.0, 2.0, 3.0, 4.0], "2": [1.5, 2.5, 3.5, 4.5]}
TIMEOUT_S = 60
ROOT = Path(__file__).parents[2]
CHILD = "from tests.crash.test_crash_models import child; child()"


class DyingStore(ModelStore):
    """Ends the process, as a power cut would, before or after the slots reach a phase."""

    def __init__(self, folder: Path, event: str, when: str) -> None:
        super().__init__(folder)
        self._event, self._when = event, when

    def move(self, name: str, event: str, slot: Slot | None = None) -> Slots:
        if event == self._event and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        after = super().move(name, event, slot)
        if event == self._event and self._when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return after


def child() -> None:
    """The process that dies: installs version 2 over version 1. Arguments: the folder of the case, event, when."""
    folder, event, when = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    keys = _load_keys(folder)
    first, candidate = (folder / "first").read_bytes(), (folder / "candidate").read_bytes()
    serve: BlobServer | DyingServer = BlobServer(first, candidate, piece_bytes=500)
    if event == "fetch":
        serve = DyingServer(first, candidate)
    store = DyingStore(folder / "models", event, when)
    surroundings = Surroundings(serve, lambda _: None, FakeClock())
    installer = Installer(store, ModelPool(), bundles.trust_of(keys), surroundings)
    installer.restore()
    installer.install(bundles.delivery(keys, candidate, 2))
    raise SystemExit("the process should have died")


class DyingServer(BlobServer):
    """The power goes in the middle of a fetch."""

    def __call__(self, request: FetchRequest) -> FetchResponse:
        if request.offset >= 1_500:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(request)


CASES = [
    ("fetch", "during"),
    *((event, when) for event in ("assigned", "verified", "passed", "swapped") for when in ("before", "after")),
]


@pytest.mark.parametrize(("event", "when"), CASES, ids=[f"killed_in_{event}_{when}" for event, when in CASES])
def test_killed_agent_serves_the_last_good_or_the_new_model_and_goes_on(tmp_path: Path, event: str, when: str) -> None:
    keys = bundles.make_keys()
    first = bundles.author_bundle(keys)
    candidate = bundles.candidate_bundle(keys, first)
    _save_keys(tmp_path, keys)
    (tmp_path / "first").write_bytes(first)
    (tmp_path / "candidate").write_bytes(candidate)
    installer, _ = _agent(tmp_path, keys, BlobServer(first, candidate))
    installer.install(bundles.delivery(keys, first, 1))

    died = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path), event, when], cwd=ROOT, timeout=TIMEOUT_S, capture_output=True
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()

    server = BlobServer(first, candidate)
    installer, pool = _agent(tmp_path, keys, server)
    swapped = (event, when) == ("swapped", "after")
    assert _served(pool) == ("2" if swapped else "1")
    assert installer.number() == (2 if swapped else 1)
    # the coordinator hands the same assignment in again
    installer.handle([bundles.delivery(keys, candidate, 2)])
    assert _served(pool) == "2"
    if event == "fetch":
        assert server.requests[0].offset > 0
    if event in ("verified", "passed", "swapped"):
        assert server.requests == []  # what was fetched once is not fetched again
    names = {read_bundle(first).blob_sha256, read_bundle(candidate).blob_sha256}
    assert {path.name for path in (tmp_path / "models" / "sha256").iterdir()} == names


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_in_rolled_back_agent_serves_the_previous_model(tmp_path: Path, when: str) -> None:
    keys = bundles.make_keys()
    first = bundles.author_bundle(keys)
    candidate = bundles.candidate_bundle(keys, first)
    installer, _ = _agent(tmp_path, keys, BlobServer(first, candidate))
    installer.handle([bundles.delivery(keys, first, 1), bundles.delivery(keys, candidate, 2)])
    store = ModelStore(tmp_path / "models")
    for _ in range(table.MAX_STARTS):
        store.move("scale", table.STARTED)
    if when == "after":
        store.move("scale", table.ROLLED_BACK)

    _, pool = _agent(tmp_path, keys, BlobServer(first, candidate))

    assert _served(pool) == "1"


@pytest.mark.parametrize("keep", ["half", "nothing", "all"])
def test_killed_while_a_slot_file_is_written_leaves_the_old_one(tmp_path: Path, keep: str) -> None:
    keys = bundles.make_keys()
    first = bundles.author_bundle(keys)
    installer, _ = _agent(tmp_path, keys, BlobServer(first))
    installer.install(bundles.delivery(keys, first, 1))
    folder = tmp_path / "models" / "slots"
    whole = (folder / "scale.json").read_bytes()
    # what a write that never came to its rename leaves behind
    torn = {"half": whole[: len(whole) // 2], "nothing": b"", "all": whole}[keep]
    (folder / ".scale.json.abc.unfinished").write_bytes(torn)

    _, pool = _agent(tmp_path, keys, BlobServer(first))

    assert _served(pool) == "1"
    assert [path.name for path in folder.iterdir()] == ["scale.json"]


def _agent(folder: Path, keys: bundles.Keys, server: BlobServer) -> tuple[Installer, ModelPool]:
    pool = ModelPool()
    surroundings = Surroundings(server, lambda _: None, FakeClock())
    installer = Installer(ModelStore(folder / "models"), pool, bundles.trust_of(keys), surroundings)
    installer.restore()
    return installer, pool


def _served(pool: ModelPool) -> str:
    """The version that answers, once its answer has been compared with what that version must say."""
    ones = np.ones((1, 4), dtype=np.float32)
    answer = pool.predict_batch([TensorRequest("scale", "", "1", {"x": ones})])[0]
    assert isinstance(answer, TensorResponse), answer
    assert answer.outputs["y"].ravel().tolist() == EXPECTED[answer.version]
    return answer.version


def _save_keys(folder: Path, keys: bundles.Keys) -> None:
    names = ("author", "approver", "run", "assignment")
    (folder / "keys.json").write_text(json.dumps({name: getattr(keys, name).to_pem().decode() for name in names}))


def _load_keys(folder: Path) -> bundles.Keys:
    pems = json.loads((folder / "keys.json").read_text())
    return bundles.Keys(**{name: PrivateKey.from_pem(pem.encode()) for name, pem in pems.items()})
