"""Classification by name: labels beside a model, in the answers of every front and protocol, and its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tests.fakes import served_models as models

from holdfast.errors import ModelError, UnknownModelError
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.serving.classification import classified
from holdfast.serving.repository import FolderRepository
from holdfast.serving.repository_folder import MAX_LABELS, ModelSettings, read_labels
from holdfast.serving.server import Address, Front, Server, ServerOptions

X = np.array([[1, 2, 3, 4], [-4, -3, -2, -1]], dtype=np.float32)


def prepare(source: ModelSource, settings: ModelSettings) -> ModelSession:
    return load_session(source)


def put(root: Path, labels: str | None, name: str = "labels.txt") -> None:
    (root / "m" / "1").mkdir(parents=True)
    (root / "m" / "1" / "model.onnx").write_bytes(models.scale(2.0))
    if labels is not None:
        (root / "m" / name).write_text(labels)


def reason(root: Path) -> str:
    """Why the model of a folder is not served."""
    pool = ModelPool()
    repository = FolderRepository(root, pool, prepare)
    repository.load_all()
    with pytest.raises(UnknownModelError):
        pool.get("m")
    return repository.index()[0].reason


@pytest.fixture(scope="module")
def address(front: Front, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("models")
    put(root, "ant\n\ncat: big\nd\N{LATIN SMALL LETTER O WITH DIAERESIS}g\n")
    pool = ModelPool()
    FolderRepository(root, pool, prepare).load_all()
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0), front=front))
    yield str(server.start())
    server.stop(2.0)


@pytest.mark.parametrize("kind", [tritonclient.grpc, tritonclient.http])
def test_classes_come_with_their_labels(address: str, kind: ModuleType) -> None:
    tensor = kind.InferInput("x", list(X.shape), "FP32")
    tensor.set_data_from_numpy(X)

    with kind.InferenceServerClient(address) as client:
        answer = client.infer("m", [tensor], outputs=[kind.InferRequestedOutput("y", class_count=3)])
        config: Any = client.get_model_config("m")

    texts = [item if isinstance(item, str) else item.decode() for item in answer.as_numpy("y").ravel()]
    assert texts[:3] == ["8.000000:3:d\N{LATIN SMALL LETTER O WITH DIAERESIS}g", "6.000000:2:cat: big", "4.000000:1"]
    outputs = (
        config["output"] if kind is tritonclient.http else [{"label_filename": config.config.output[0].label_filename}]
    )
    assert outputs[0]["label_filename"] == "labels.txt"


def test_class_beyond_the_labels_has_none() -> None:
    assert classified("y", np.array([1.0, 3.0, 2.0]), 3, ["a", "b"]).tolist() == [
        b"3.000000:1:b",
        b"2.000000:2",
        b"1.000000:0:a",
    ]


def test_model_without_labels_is_served_without(tmp_path: Path) -> None:
    put(tmp_path, None)
    pool = ModelPool()

    FolderRepository(tmp_path, pool, prepare).load_all()

    assert pool.get("m").session.labels == ()


def test_changed_labels_are_taken_up_without_loading_the_model_again(tmp_path: Path) -> None:
    put(tmp_path, "a\nb\n")
    loads: list[int] = []

    def counted(source: ModelSource, settings: ModelSettings) -> ModelSession:
        loads.append(1)
        return load_session(source)

    pool = ModelPool()
    repository = FolderRepository(tmp_path, pool, counted)
    repository.load_all()
    (tmp_path / "m" / "labels.txt").write_text("other\n")

    repository.poll()

    assert pool.get("m").session.labels == ("other",)
    assert len(loads) == 1


def test_settings_name_another_file(tmp_path: Path) -> None:
    put(tmp_path, "a\nb\n", "animals.txt")
    (tmp_path / "m" / "session.toml").write_text('labels = "animals.txt"')
    pool = ModelPool()

    FolderRepository(tmp_path, pool, prepare).load_all()

    assert pool.get("m").session.labels == ("a", "b")


@pytest.mark.parametrize("name", ["absent.txt", "../outside.txt", "/etc/hostname", "1/model.onnx", "."])
def test_file_that_is_not_beside_the_settings_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    put(tmp_path / "models", "a")
    (tmp_path / "models" / "m" / "session.toml").write_text(f'labels = "{name}"')

    assert "labels file" in reason(tmp_path / "models")


def test_link_that_leads_out_of_the_repository_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outside.txt").write_text("secret")
    put(tmp_path / "models", None)
    (tmp_path / "models" / "m" / "labels.txt").symlink_to(tmp_path / "outside.txt")

    found = reason(tmp_path / "models")

    assert "is not in the model's folder" in found
    assert "secret" not in found


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"a\nb\x1b[31m\n", "line 2 of labels.txt: expected at most 256 printable"),
        (b"a" * 257, "line 1 of labels.txt"),
        (b"a\n\xff\n", "is not UTF-8 at byte 2"),
        (b"a\n" * (MAX_LABELS + 1), f"more than {MAX_LABELS} labels"),
        (b"a" * 5_000_000, "labels or 4194304 bytes"),
    ],
    ids=["escape", "long", "not_utf_8", "many", "large"],
)
def test_labels_file_with_a_defect_is_refused(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(data)

    with pytest.raises(ModelError, match=text):
        read_labels(path)


def test_line_ends_of_both_kinds_are_read(tmp_path: Path) -> None:
    (tmp_path / "l").write_bytes(b"a\r\n\r\nc")

    assert read_labels(tmp_path / "l") == ("a", "", "c")
    (tmp_path / "l").write_bytes(b"")
    assert read_labels(tmp_path / "l") == ()
