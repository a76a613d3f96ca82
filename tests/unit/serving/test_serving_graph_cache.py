"""A served folder takes its graphs from the cache, but never a model that did not pass its trial."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import served_models as models

from holdfast.errors import ModelError
from holdfast.inference.graph_cache import SUFFIX, GraphCache
from holdfast.inference.pool import ModelPool
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.repository import FolderRepository, prepare_safely


def put(root: Path, name: str, model: bytes) -> None:
    (root / name / "1").mkdir(parents=True)
    (root / name / "1" / "model.onnx").write_bytes(model)


def test_folder_is_served_from_cached_graphs(tmp_path: Path) -> None:
    put(tmp_path / "models", "m", models.scale(2.0))
    for _ in range(2):  # made, then read
        pool = ModelPool()
        prepare = partial(prepare_safely, cache=GraphCache(tmp_path / "graphs"))
        FolderRepository(tmp_path / "models", pool, prepare).load("m")

        (answer,) = pool.predict_batch([TensorRequest("m", "", "", {"x": np.ones((1, 4), dtype=np.float32)})])
        assert isinstance(answer, TensorResponse)
        assert answer.outputs["y"].tolist() == [[2, 2, 2, 2]]
        assert "not checked" not in pool.get("m").session.traits.mixing.reason

    assert len(list((tmp_path / "graphs").glob(f"*{SUFFIX}"))) == 1


def test_a_model_that_fails_its_trial_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    put(tmp_path / "models", "m", b"nonsense")
    prepare = partial(prepare_safely, cache=GraphCache(tmp_path / "graphs"))

    with pytest.raises(ModelError):
        FolderRepository(tmp_path / "models", ModelPool(), prepare).load("m")

    assert list((tmp_path / "graphs").iterdir()) == []
