"""A model that is loaded while others are served gives way to them; at the start there is nobody to give way to."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from tests.fakes import served_models as models

from holdfast.inference.background import THREAD_NICE
from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession, ModelSource, load_session
from holdfast.serving.repository import FolderRepository
from holdfast.serving.repository_folder import ModelSettings


class Watched:
    """A folder with one model, and the priority of the threads that prepared it."""

    def __init__(self, root: Path) -> None:
        self.file = root / "m" / "1" / "model.onnx"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(models.scale(1.0))
        self.nices: list[int] = []
        self.repository = FolderRepository(root, ModelPool(), self._prepare)

    def _prepare(self, source: ModelSource, _settings: ModelSettings) -> ModelSession:
        self.nices.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return load_session(source)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_at_the_start_a_model_is_loaded_at_full_priority(watched: Watched) -> None:
    watched.repository.load_all()

    assert watched.nices == [os.getpriority(os.PRIO_PROCESS, 0)]


@pytest.mark.parametrize("way", ["load", "poll"])
def test_later_it_gives_way(watched: Watched, way: str) -> None:
    watched.repository.load_all()
    watched.file.write_bytes(models.scale(22.0))

    watched.repository.load("m") if way == "load" else watched.repository.poll()

    assert watched.nices[1] == max(THREAD_NICE, watched.nices[0])


def test_a_session_with_threads_of_its_own_is_made_at_full_priority_so_that_they_have_it_too(watched: Watched) -> None:
    watched.file.parent.with_name("session.toml").write_text("threads = 2\n", encoding="utf-8")

    watched.repository.load("m")

    assert watched.nices == [os.getpriority(os.PRIO_PROCESS, 0)]
