"""A folder of many models at the start: several are tried at a time, and a bad one costs only itself."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from tests.fakes import served_models as models

from holdfast.errors import ModelError
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.serving import repository as repository_module
from holdfast.serving.repository import FolderRepository, prepare_safely
from holdfast.serving.repository_folder import ModelSettings

DEADLINE_S = 20.0


def put(root: Path, name: str, data: bytes) -> None:
    folder = root / name / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(data)


def states(repository: FolderRepository) -> dict[str, str]:
    return {state.name: state.state for state in repository.index()}


class Counted:
    """A prepare that counts how many are inside at a time, and lets `together` of them go only together."""

    def __init__(self, together: int) -> None:
        self._barrier = threading.Barrier(together)
        self._lock = threading.Lock()
        self._inside = 0
        self.most = 0

    def __call__(self, source: ModelSource, _settings: ModelSettings) -> ModelSession:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)
        self._barrier.wait(DEADLINE_S)
        with self._lock:
            self._inside -= 1
        return load_session(source)


def test_as_many_models_are_tried_at_a_time_as_allowed_and_no_more(tmp_path: Path) -> None:
    for index in range(6):
        put(tmp_path, f"m{index}", models.scale(float(index)))
    prepare, pool = Counted(together=2), ModelPool()
    repository = FolderRepository(tmp_path, pool, prepare, at_once=2)

    repository.load_all()

    assert states(repository) == {f"m{index}": "READY" for index in range(6)}
    assert sorted(pool.names()) == [f"m{index}" for index in range(6)]
    assert prepare.most == 2


def test_hostile_and_broken_models_make_only_themselves_unavailable(tmp_path: Path) -> None:
    put(tmp_path, "hangs", models.hangs_at_first_run())
    (tmp_path / "hangs" / "session.toml").write_text("trial_timeout_s = 2.0")
    put(tmp_path, "broken", b"not a model")
    for name in ("a", "b", "z"):
        put(tmp_path, name, models.scale(1.0))
    pool = ModelPool()
    repository = FolderRepository(tmp_path, pool, prepare_safely, at_once=3)

    repository.load_all()

    served = {"a": "READY", "b": "READY", "z": "READY"}
    assert states(repository) == served | {"hangs": "UNAVAILABLE", "broken": "UNAVAILABLE"}
    reasons = {state.name: state.reason for state in repository.index()}
    assert "was not loaded and run within 2 s" in reasons["hangs"]
    assert "not an ONNX file" in reasons["broken"]
    assert sorted(pool.names()) == ["a", "b", "z"]


def test_models_are_measured_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, alone = threading.Barrier(3), threading.Lock()
    prepared: list[str] = []

    def run_trial(*_arguments: object, **_options: object) -> None:
        tried.wait(DEADLINE_S)  # all three are here before one goes on

    def prepare_session(source: ModelSource, *_arguments: object, **_options: object) -> ModelSession:
        if not alone.acquire(blocking=False):
            raise ModelError("measured while another one was")
        try:
            prepared.append(source.digest)
            return load_session(source)
        finally:
            alone.release()

    monkeypatch.setattr(repository_module, "run_trial", run_trial)
    monkeypatch.setattr(repository_module, "prepare_session", prepare_session)
    for name in ("a", "b", "c"):
        put(tmp_path, name, models.scale(float(len(name))))
    repository = FolderRepository(tmp_path, ModelPool(), at_once=3)

    repository.load_all()

    assert states(repository) == {"a": "READY", "b": "READY", "c": "READY"}
    assert len(prepared) == 3


def test_what_was_loaded_at_the_start_is_not_loaded_again_by_the_first_poll(tmp_path: Path) -> None:
    put(tmp_path, "a", models.scale(1.0))
    put(tmp_path, "b", b"broken")
    seen: list[str] = []

    def prepare(source: ModelSource, _settings: ModelSettings) -> ModelSession:
        seen.append(source.digest)
        return load_session(source)

    repository = FolderRepository(tmp_path, ModelPool(), prepare)
    repository.load_all()
    before = len(seen)

    repository.poll()

    assert len(seen) == before
