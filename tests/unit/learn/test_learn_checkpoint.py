"""A training that was interrupted ends in the same bits as one that was not, and a bad checkpoint is none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.models import he_mlp
from tests.fakes.step_graphs import evaluation, momentum_step

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.errors import StateError
from holdfast.learn.checkpoint import Checkpoint, CheckpointFile
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainProgress, TrainSettings
from holdfast.update.layout import FlatLayout

SETTINGS = TrainSettings(epochs=4, batch=10, learning_rate=0.1, seed=3)
CONTRACT = DataContract((InputContract("input", "float32", (4,)),), class_count=3)
STEPS_PER_EPOCH = 5


class Interrupted(Exception):
    """Stands for a kill: raised where no code expects it."""


@cache
def model() -> tuple[TrainingGraphs, bytes]:
    graphs = build_graphs(he_mlp([4, 8, 3]), batch=10)
    return graphs, split_weights(he_mlp([4, 8, 3])).weights


def dataset(count: int = 47) -> LocalDataset:
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, :3], axis=1)}, CONTRACT)


def trainer() -> Trainer:
    graphs, _ = model()
    return Trainer(graphs.train, graphs.evaluate, graphs.layout)


def weights() -> np.ndarray:
    return np.frombuffer(model()[1], "<f4")


def interrupt_at(step: int) -> object:
    def progress(place: TrainProgress) -> None:
        if place.step == step:
            raise Interrupted

    return progress


@pytest.mark.parametrize(("step", "epochs"), [(3, 0), (5, 0), (6, 1), (14, 2), (20, 3)])
def test_resumed_training_is_bit_identical(tmp_path: Path, step: int, epochs: int) -> None:
    file = CheckpointFile(tmp_path / "train")
    expected = trainer().train(weights(), dataset(), SETTINGS)
    with pytest.raises(Interrupted):
        trainer().train(weights(), dataset(), SETTINGS, interrupt_at(step), checkpoint=file)

    seen: list[int] = []
    result = trainer().train(weights(), dataset(), SETTINGS, lambda p: seen.append(p.step), checkpoint=file)

    assert result.resumed_epochs == epochs
    assert seen == list(range(epochs * STEPS_PER_EPOCH + 1, 21))
    assert result.delta.tobytes() == expected.delta.tobytes()
    assert (result.loss_before, result.loss_after) == (expected.loss_before, expected.loss_after)
    assert (result.steps, result.gradient_norm) == (20, expected.gradient_norm)


def test_a_training_that_was_done_is_not_done_again(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "train")
    expected = trainer().train(weights(), dataset(), SETTINGS, checkpoint=file)

    result = trainer().train(weights(), dataset(), SETTINGS, interrupt_at(1), checkpoint=file)

    assert result.resumed_epochs == 4
    assert result.delta.tobytes() == expected.delta.tobytes()


def test_state_of_an_optimizer_is_resumed_too(tmp_path: Path) -> None:
    layout = FlatLayout.from_shapes([("w", (2,))])
    contract = DataContract((InputContract("x", "float32", (1,)),), class_count=2)
    data = LocalDataset.from_arrays({"x": np.ones((7, 1), np.float32), "y": np.zeros(7, int)}, contract)
    settings = replace(SETTINGS, batch=4)
    start = np.zeros(2, np.float32)
    expected = Trainer(momentum_step(), evaluation(), layout).train(start, data, settings)
    file = CheckpointFile(tmp_path / "train")
    with pytest.raises(Interrupted):
        Trainer(momentum_step(), evaluation(), layout).train(start, data, settings, interrupt_at(6), checkpoint=file)

    result = Trainer(momentum_step(), evaluation(), layout).train(start, data, settings, checkpoint=file)

    assert result.resumed_epochs == 2
    np.testing.assert_array_equal(result.delta, expected.delta)


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"learning_rate": 0.2}, {"epochs": 5}, {"batch": 9}],
    ids=str,
)
def test_checkpoint_of_other_settings_counts_as_none(tmp_path: Path, other: dict[str, float]) -> None:
    file = CheckpointFile(tmp_path / "train")
    trainer().train(weights(), dataset(), SETTINGS, checkpoint=file)

    assert trainer().train(weights(), dataset(), replace(SETTINGS, **other), checkpoint=file).resumed_epochs == 0


def test_checkpoint_of_other_samples_or_weights_counts_as_none(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "train")
    trainer().train(weights(), dataset(), SETTINGS, checkpoint=file)

    assert trainer().train(weights(), dataset(46), SETTINGS, checkpoint=file).resumed_epochs == 0
    assert trainer().train(weights() * np.float32(0.5), dataset(), SETTINGS, checkpoint=file).resumed_epochs == 0


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "huge"])
def test_damaged_checkpoint_counts_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "train"
    trainer().train(weights(), dataset(), SETTINGS, checkpoint=CheckpointFile(path))
    data = path.read_bytes()
    flipped = bytes(byte ^ (index == len(data) - 9) for index, byte in enumerate(data))
    path.write_bytes({"empty": b"", "cut": data[:-5], "flipped": flipped, "huge": bytes(200_000)}[damage])

    result = trainer().train(weights(), dataset(), SETTINGS, checkpoint=CheckpointFile(path, max_bytes=100_000))

    assert result.resumed_epochs == 0


def test_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    expected = trainer().train(weights(), dataset(), SETTINGS)
    monkeypatch.setattr(os, "fsync", full)

    result = trainer().train(weights(), dataset(), SETTINGS, checkpoint=CheckpointFile(tmp_path / "train"))

    assert result.delta.tobytes() == expected.delta.tobytes()
    assert "No space left" in result.checkpoint_problem
    assert list(tmp_path.iterdir()) == []


def test_state_above_the_bound_is_not_written(tmp_path: Path) -> None:
    checkpoint = Checkpoint(1, 1, {"w": np.zeros(100, np.float32)}, 1.0, 1.0, 1.0)

    with pytest.raises(StateError, match="400 bytes, a checkpoint at most 399"):
        CheckpointFile(tmp_path / "train", max_bytes=399).save("id", checkpoint)

    assert list(tmp_path.iterdir()) == []


def test_discard_removes_the_file_and_does_not_mind_that_there_is_none(tmp_path: Path) -> None:
    file = CheckpointFile(tmp_path / "train")
    trainer().train(weights(), dataset(), SETTINGS, checkpoint=file)

    file.discard()
    file.discard()

    assert list(tmp_path.iterdir()) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.unit.learn import test_learn_checkpoint as here
def die(place):
    if place.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
file = here.CheckpointFile(Path(sys.argv[1]))
here.trainer().train(here.weights(), here.dataset(), here.SETTINGS, die, checkpoint=file)
"""


def test_killed_in_the_middle_of_an_epoch_loses_that_epoch_only(tmp_path: Path) -> None:
    path = tmp_path / "train"

    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], check=False, timeout=120, cwd=Path(__file__).parents[3]
    )
    result = trainer().train(weights(), dataset(), SETTINGS, checkpoint=CheckpointFile(path))

    assert done.returncode == -signal.SIGKILL
    assert result.resumed_epochs == 2
    assert result.delta.tobytes() == trainer().train(weights(), dataset(), SETTINGS).delta.tobytes()
