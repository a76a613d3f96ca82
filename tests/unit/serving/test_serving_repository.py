"""A model repository on disk: what is served, what is refused with its reason, and that nothing else suffers."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import INFER, TIMEOUT_S

from holdfast.errors import ModelError, SettingsError, UnknownModelError, UsageError
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving import oip
from holdfast.serving.repository import FolderRepository, prepare_safely
from holdfast.serving.repository_folder import ModelSettings, root_of, scan, settings_of
from holdfast.serving.server import Address, Front, Server, ServerOptions

X = np.ones((1, 4), dtype=np.float32)


def put(root: Path, name: str, version: int | str, data: bytes) -> Path:
    """Put a model file in place the way an operator should: whole, by a rename."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "coming").write_bytes(data)
    os.replace(folder / "coming", folder / "model.onnx")
    return folder / "model.onnx"


def prepare_quickly(source: ModelSource, _settings: ModelSettings) -> ModelSession:
    return load_session(source)


class Shop:
    """A repository, its pool, and how often a model was prepared."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pool = ModelPool()
        self.prepared = 0
        self.repository = FolderRepository(root, self.pool, self._prepare)

    def _prepare(self, source: ModelSource, settings: ModelSettings) -> ModelSession:
        self.prepared += 1
        return prepare_quickly(source, settings)

    def states(self) -> dict[str, str]:
        return {f"{state.name}/{state.version}": state.state for state in self.repository.index()}

    def reason(self, name: str, version: str) -> str:
        (found,) = (s.reason for s in self.repository.index() if (s.name, s.version) == (name, version))
        return found

    def answer(self, name: str, version: str = "") -> tuple[str, float]:
        (answer,) = self.pool.predict_batch([TensorRequest(name, version, "", {"x": X})])
        assert isinstance(answer, TensorResponse), answer
        return answer.version, float(answer.outputs["y"][0, 0])


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_newest_version_of_each_model_is_served(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    put(shop.root, "a", 10, models.scale(10.0))
    put(shop.root, "a", 9, models.scale(9.0))
    put(shop.root, "b", 3, models.scale(3.0))

    shop.repository.load_all()

    assert shop.answer("a") == ("10", 10.0)
    assert shop.answer("b") == ("3", 3.0)
    assert shop.states() == {"a/10": "READY", "b/3": "READY"}


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ('version_policy = "all"', ("1", "2", "3")),
        ("latest_versions = 2", ("2", "3")),
        ('version_policy = "specific"\nversions = [1, 3]', ("1", "3")),
    ],
)
def test_policy_decides_which_versions_are_served(shop: Shop, text: str, served: tuple[str, ...]) -> None:
    for version in (1, 2, 3):
        put(shop.root, "a", version, models.scale(float(version)))
    (shop.root / "a" / "session.toml").write_text(text)

    shop.repository.load_all()

    assert shop.pool.versions("a") == served
    assert shop.answer("a") == (served[-1], float(served[-1]))
    assert shop.answer("a", served[0]) == (served[0], float(served[0]))


def test_corrupt_version_is_unavailable_with_its_reason_and_leaves_the_rest_serving(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    put(shop.root, "a", 2, b"not a model \x1b[31m at all")
    put(shop.root, "b", 1, models.scale(5.0))

    shop.repository.load_all()

    assert shop.states() == {"a/1": "READY", "a/2": "UNAVAILABLE", "b/1": "READY"}
    assert "not an ONNX file" in shop.reason("a", "2")
    assert shop.reason("a", "2").isprintable()
    assert shop.answer("a") == ("1", 1.0)
    assert shop.answer("b") == ("1", 5.0)


def test_hostile_model_ends_in_its_child_process(tmp_path: Path) -> None:
    put(tmp_path, "bad", 1, models.hangs_at_first_run())
    (tmp_path / "bad" / "session.toml").write_text("trial_timeout_s = 2.0")
    pool = ModelPool()
    repository = FolderRepository(tmp_path, pool, prepare_safely)

    with pytest.raises(ModelError, match="was not loaded and run within 2 s"):
        repository.load("bad")

    assert [state.state for state in repository.index()] == ["UNAVAILABLE"]
    assert pool.names() == ()


def test_corrupt_file_over_a_served_version_does_not_stop_it(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    shop.repository.load("a")
    put(shop.root, "a", 1, b"broken")

    with pytest.raises(ModelError, match="'a' is not reloaded: version 1: what was loaded before goes on: not a whole"):
        shop.repository.load("a")

    assert shop.answer("a") == ("1", 1.0)
    assert shop.states() == {"a/1": "READY"}


def test_same_bytes_are_not_loaded_twice(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    shop.repository.load("a")
    put(shop.root, "a", 2, models.scale(2.0))
    (shop.root / "a" / "session.toml").write_text("latest_versions = 2")
    shop.repository.load("a")
    before = shop.prepared

    shop.repository.load("a")

    assert shop.prepared == before
    assert shop.pool.versions("a") == ("1", "2")


def test_unloaded_model_is_gone_until_it_is_loaded_or_changes(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    shop.repository.load_all()

    shop.repository.unload("a")
    shop.repository.poll()

    assert shop.states() == {"a/1": "UNAVAILABLE"}
    assert shop.reason("a", "1") == "unloaded"
    with pytest.raises(UnknownModelError):
        shop.pool.get("a")
    put(shop.root, "a", 1, models.scale(4.0))
    shop.repository.poll()
    assert shop.answer("a") == ("1", 4.0)


def test_poll_follows_the_folder(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    shop.repository.load_all()
    put(shop.root, "a", 2, models.scale(2.0))
    put(shop.root, "b", 1, models.scale(7.0))

    shop.repository.poll()

    assert shop.answer("a") == ("2", 2.0)
    assert shop.answer("b") == ("1", 7.0)
    (shop.root / "b" / "1" / "model.onnx").unlink()
    (shop.root / "b" / "1").rmdir()
    (shop.root / "b").rmdir()
    shop.repository.poll()
    assert shop.pool.names() == ("a",)


def test_no_request_fails_while_versions_change(shop: Shop) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    shop.repository.load_all()
    stop, failures, seen = threading.Event(), [], set()

    def ask() -> None:
        while not stop.is_set():
            (answer,) = shop.pool.predict_batch([TensorRequest("a", "", "", {"x": X})])
            if isinstance(answer, TensorResponse):
                seen.add(float(answer.outputs["y"][0, 0]))
            else:
                failures.append(answer)

    asker = threading.Thread(target=ask)
    asker.start()
    for version in range(2, 8):
        put(shop.root, "a", version, models.scale(float(version)))
        shop.repository.load("a")
    stop.set()
    asker.join()

    assert failures == []
    assert seen <= {float(version) for version in range(1, 8)}


@pytest.mark.parametrize("name", ["../a", "a/../b", "/etc", "", ".", "..", "a\nb", "x" * 300, "absent"])
def test_name_that_is_no_folder_of_the_repository_is_unknown(shop: Shop, name: str) -> None:
    put(shop.root, "a", 1, models.scale(1.0))

    with pytest.raises(UnknownModelError):
        shop.repository.load(name)

    assert shop.states() == {}


def test_link_that_leads_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    outside = put(tmp_path / "elsewhere", "secret", 1, models.scale(1.0))
    root = tmp_path / "models"
    (root / "a" / "1").mkdir(parents=True)
    (root / "a" / "1" / "model.onnx").symlink_to(outside)
    (root / "b").symlink_to(tmp_path / "elsewhere" / "secret")
    shop = Shop(root)

    shop.repository.load_all()

    assert shop.states() == {"a/1": "UNAVAILABLE", "b/1": "UNAVAILABLE"}
    assert "leads out of the repository" in shop.reason("a", "1")


def test_link_inside_the_repository_is_followed(shop: Shop) -> None:
    file = put(shop.root, "a", 1, models.scale(3.0))
    (shop.root / "b" / "1").mkdir(parents=True)
    (shop.root / "b" / "1" / "model.onnx").symlink_to(file)

    shop.repository.load_all()

    assert shop.answer("b") == ("1", 3.0)


@pytest.mark.parametrize("version", ["0", "01", "-1", "1.0", "latest", "99999999999"])
def test_folder_that_is_no_version_is_not_looked_at(shop: Shop, version: str) -> None:
    put(shop.root, "a", version, models.scale(1.0))

    with pytest.raises(ModelError, match="no version in its folder"):
        shop.repository.load("a")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("threds = 2", "unknown setting 'threds'"),
        ("threads = 0", "allowed: 1 .. 1024"),
        ('version_policy = "newest"', "latest | all | specific"),
        ('versions = ["1"]', "whole numbers"),
        ("not toml", "not valid TOML"),
    ],
)
def test_wrong_settings_make_a_model_unavailable_with_the_reason(shop: Shop, text: str, reason: str) -> None:
    put(shop.root, "a", 1, models.scale(1.0))
    put(shop.root, "b", 1, models.scale(1.0))
    (shop.root / "a" / "session.toml").write_text(text)

    shop.repository.load_all()

    assert shop.states() == {"a/1": "UNAVAILABLE", "b/1": "READY"}
    assert reason in shop.reason("a", "1")
    with pytest.raises(SettingsError):
        settings_of(scan(shop.root)["a"])


def test_root_may_be_the_folder_or_its_models_folder(tmp_path: Path) -> None:
    put(tmp_path / "models", "a", 1, models.scale(1.0))

    assert root_of(tmp_path) == tmp_path / "models"
    assert root_of(tmp_path / "models") == tmp_path / "models"
    with pytest.raises(UsageError, match="is not a folder"):
        root_of(tmp_path / "absent")


def test_model_with_external_data_is_loaded(shop: Shop) -> None:
    model, weight = models.with_external_weight()
    put(shop.root, "a", 1, model)
    (shop.root / "a" / "1" / "weights.bin").write_bytes(weight)

    shop.repository.load("a")

    assert shop.answer("a") == ("1", 1.0)


def test_no_call_fails_while_a_server_reloads(tmp_path: Path, front: Front) -> None:
    put(tmp_path, "a", 1, models.scale(1.0))
    shop = Shop(tmp_path)
    shop.repository.load_all()
    server = Server(shop.pool, options=ServerOptions(Address("127.0.0.1", 0), front=front), repository=shop.repository)
    address = server.start()
    request = oip.encode_request(TensorRequest("a", "", "", {"x": X}))
    stop, versions = threading.Event(), set()

    def ask() -> None:
        with grpc.insecure_channel(str(address)) as channel:
            infer = channel.unary_unary(INFER)
            while not stop.is_set():
                versions.add(oip.decode_response(infer(request, timeout=TIMEOUT_S)).version)

    with ThreadPoolExecutor(2) as askers:
        asking = [askers.submit(ask) for _ in range(2)]
        for version in range(2, 6):
            put(tmp_path, "a", version, models.scale(float(version)))
            shop.repository.load("a")
        stop.set()
        for one in asking:
            one.result(TIMEOUT_S)
    server.stop(2.0)

    assert versions <= {"1", "2", "3", "4", "5"}
    assert versions
