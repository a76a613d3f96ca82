"""The trainer on graphs of every optimizer and option: state, anchors, noise, statistics, labels that are numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.fakes.models import classifier, he_mlp

from holdfast.autodiff.build import StepOptions, TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.registry import OPTIMIZERS
from holdfast.learn.checkpoint import CheckpointFile
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import FEEDS, PING_PONG, TrainerOptions, TrainProgress, TrainSettings

SETTINGS = TrainSettings(epochs=3, batch=10, learning_rate=0.02, seed=1)
CONTRACT = DataContract((InputContract("input", "float32", (4,)),), class_count=3)


class Interrupted(Exception):
    """Stands for a kill."""


@cache
def model(kind: str) -> bytes:
    if kind == "mlp":
        return he_mlp([4, 8, 3])
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 6)).astype(np.float32),
        "scale": np.ones(6, np.float32),
        "bias": np.zeros(6, np.float32),
        "mean": np.full(6, 0.5, np.float32),
        "variance": np.full(6, 2.0, np.float32),
        "v": rng.standard_normal((6, 3)).astype(np.float32),
    }
    middle = {
        "batch_norm": helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "variance"], ["b"]),
        "dropout": helper.make_node("Dropout", ["a"], ["b"]),
    }[kind]
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"]),
        middle,
        helper.make_node("MatMul", ["b", "v"], ["logits"]),
    ]
    used = {name: array for name, array in weights.items() if any(name in node.input for node in nodes)}
    return classifier(nodes, used, inputs={"input": ("batch", 4)})


def dataset(count: int = 33) -> LocalDataset:
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    return LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, :3], axis=1)}, CONTRACT)


def trainer(graphs: TrainingGraphs, buffers: str = FEEDS) -> Trainer:
    return Trainer(graphs.train, graphs.evaluate, graphs.layout, TrainerOptions(buffers=buffers))


def weights(kind: str, graphs: TrainingGraphs) -> np.ndarray:
    return np.frombuffer(split_weights(model(kind), layout=graphs.layout).weights, "<f4")


@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_every_optimizer_learns_and_resumes_bit_by_bit(tmp_path: Path, optimizer: str) -> None:
    graphs = build_graphs(model("mlp"), batch=10, optimizer=optimizer)
    start, file = weights("mlp", graphs), CheckpointFile(tmp_path / "checkpoint")

    def interrupt(at: TrainProgress) -> None:
        if at.step == 7:
            raise Interrupted

    whole = trainer(graphs).train(start, dataset(), SETTINGS)
    with pytest.raises(Interrupted):
        trainer(graphs).train(start, dataset(), SETTINGS, interrupt, checkpoint=file)
    resumed = trainer(graphs, PING_PONG).train(start, dataset(), SETTINGS, checkpoint=file)

    assert whole.loss_after < whole.loss_before
    assert resumed.resumed_epochs == 1
    assert resumed.delta.tobytes() == whole.delta.tobytes()


def test_proximal_term_keeps_weights_near_where_they_were() -> None:
    graphs = build_graphs(model("mlp"), batch=10, options=StepOptions(proximal=True))
    free, held = (
        trainer(graphs).train(weights("mlp", graphs), dataset(), replace(SETTINGS, epochs=20, proximal_mu=mu))
        for mu in (0.0, 5.0)
    )

    assert held.delta_norm < free.delta_norm / 2


def test_gradient_clip_bounds_a_step() -> None:
    graphs = build_graphs(model("mlp"), batch=10, options=StepOptions(clip=True))
    free, held = (
        trainer(graphs).train(weights("mlp", graphs), dataset(), replace(SETTINGS, gradient_clip=clip))
        for clip in (0.0, 0.01)
    )

    assert held.gradient_norm == pytest.approx(0.01, rel=1e-3)
    assert held.delta_norm <= 0.01 * SETTINGS.learning_rate * held.steps * 1.001 < free.delta_norm


def test_dropout_draws_the_same_noise_for_the_same_seed_and_resumes() -> None:
    graphs = build_graphs(model("dropout"), batch=10, options=StepOptions(dropout=True))
    start = weights("dropout", graphs)

    first, again = (trainer(graphs).train(start, dataset(), SETTINGS) for _ in range(2))
    quiet = build_graphs(model("dropout"), batch=10)
    plain = trainer(quiet).train(start, dataset(), SETTINGS)

    assert first.delta.tobytes() == again.delta.tobytes()
    assert first.delta.tobytes() != plain.delta.tobytes()


@pytest.mark.parametrize("batch_norm", ["frozen", "averaged", "local"])
def test_running_statistics_stay_travel_or_stand_still(batch_norm: str) -> None:
    graphs = build_graphs(model("batch_norm"), batch=10, options=StepOptions(batch_norm=batch_norm))
    start = weights("batch_norm", graphs)

    result = trainer(graphs).train(start, dataset(), SETTINGS)

    after = graphs.layout.unpack(graphs.layout.add_delta(start, result.delta))
    moved = not np.array_equal(after["mean"], np.full(6, 0.5))
    assert moved is (batch_norm == "averaged")
    assert set(result.local_state) == ({"mean", "variance"} if batch_norm == "local" else set())
    assert result.loss_after < result.loss_before


@pytest.mark.parametrize("loss", ["mse", "l1", "huber:delta=0.5", "binary_cross_entropy"])
def test_labels_that_are_numbers_are_learned_with_a_short_last_batch(loss: str) -> None:
    graphs = build_graphs(model("mlp"), batch=10, loss=loss)
    contract = DataContract((InputContract("input", "float32", (4,)),), 0, target_shape=(3,))
    x = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)
    data = LocalDataset.from_arrays({"input": x, "y": (x[:, :3] > 0).astype(np.float32)}, contract)

    result = trainer(graphs).train(weights("mlp", graphs), data, replace(SETTINGS, epochs=20))

    assert result.steps == 60
    assert result.loss_after < result.loss_before
