"""What `holdfast serve DIR` says when it is ready."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.fakes import served_models as models

from holdfast.cli.serve_folder import _say_ready
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import load_session
from holdfast.serving.repository import FolderRepository


def said(root: Path, capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> str:
    repository = FolderRepository(root, ModelPool(), lambda source, settings: load_session(source))
    repository.load_all()
    _say_ready(repository, root, "127.0.0.1:8080", as_json=as_json)
    return capsys.readouterr().out


@pytest.mark.parametrize("place", ["", "m", "m/1/more"])
def test_folder_without_a_model_in_its_place_is_told_which_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    if place:
        (folder / "model.onnx").write_bytes(models.scale(2.0))

    told = said(tmp_path, capsys)

    assert f"no model is served: expected files like {tmp_path}/NAME/1/model.onnx" in told
    assert told.endswith("serving on 127.0.0.1:8080 (gRPC and HTTP); Ctrl-C stops\n")


def test_served_models_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "1" / "model.onnx").write_bytes(models.scale(2.0))

    told = said(tmp_path, capsys)

    assert told.splitlines()[0].split() == ["READY", "m", "version", "1"]
    assert "no model" not in told
    assert json.loads(said(tmp_path, capsys, as_json=True))["models"][0]["state"] == "READY"
