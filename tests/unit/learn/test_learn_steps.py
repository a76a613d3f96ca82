"""Steps: both kinds of buffers give the same bits, no memory is shared, and an optimizer's state lives on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from tests.fakes.models import he_mlp
from tests.fakes.step_graphs import anchored_step, evaluation, momentum_step, noisy_step

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.errors import TrainingError
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.step_session import LearningSession
from holdfast.learn.steps import FeedSteps, PingPongSteps, check_apart, noise
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import FEEDS, PING_PONG, TrainerOptions, TrainSettings
from holdfast.update.layout import FlatLayout

SETTINGS = TrainSettings(epochs=3, batch=4, learning_rate=0.5, seed=0)
LAYOUT = FlatLayout.from_shapes([("w", (2,))])
W = np.array([10, 20], np.float32)


def one_column(count: int) -> LocalDataset:
    contract = DataContract((InputContract("x", "float32", (1,)),), class_count=2)
    return LocalDataset.from_arrays({"x": np.ones((count, 1), np.float32), "y": np.zeros(count, int)}, contract)


def mlp_dataset(count: int) -> LocalDataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 4)).astype(np.float32)
    contract = DataContract((InputContract("input", "float32", (4,)),), class_count=3)
    return LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, :3], axis=1)}, contract)


@pytest.mark.parametrize("trainable", ["all", "layer1.*"])
def test_ping_pong_gives_the_same_bits_as_feeds(trainable: str) -> None:
    model = he_mlp([4, 8, 3])
    graphs = build_graphs(model, batch=10, trainable=trainable)
    weights = np.frombuffer(split_weights(model, layout=graphs.layout).weights, "<f4")

    deltas = [
        Trainer(graphs.train, graphs.evaluate, graphs.layout, TrainerOptions(buffers=buffers))
        .train(weights, mlp_dataset(33), replace(SETTINGS, batch=10))
        .delta.tobytes()
        for buffers in (FEEDS, PING_PONG)
    ]

    assert deltas[0] == deltas[1]


@pytest.mark.parametrize("buffers", [FEEDS, PING_PONG])
def test_slots_start_at_zero_and_live_across_epochs(buffers: str) -> None:
    trainer = Trainer(momentum_step(), evaluation(), LAYOUT, TrainerOptions(buffers=buffers))

    result = trainer.train(W, one_column(7), SETTINGS)

    assert result.steps == 6
    np.testing.assert_array_equal(result.delta, np.full(2, -0.5 * (1 + 2 + 3 + 4 + 5 + 6)))
    again = trainer.train(W, one_column(7), SETTINGS)
    np.testing.assert_array_equal(again.delta, result.delta)


@pytest.mark.parametrize("buffers", [FEEDS, PING_PONG])
def test_anchor_stays_where_training_started(buffers: str) -> None:
    trainer = Trainer(anchored_step(), evaluation(), LAYOUT, TrainerOptions(buffers=buffers))

    np.testing.assert_array_equal(trainer.train(W, one_column(7), SETTINGS).delta, np.full(2, 0.5))


@pytest.mark.parametrize("kind", [FeedSteps, PingPongSteps])
def test_a_state_that_was_handed_out_does_not_change_with_later_steps(kind: type[FeedSteps]) -> None:
    session = LearningSession(momentum_step(), "train", (), weights=None, threads=1)
    given = W.copy()
    steps = kind(session, {"w": given, "w.momentum": np.zeros(2, np.float32)}, {})
    feeds = {
        "x": np.ones((4, 1), np.float32),
        "labels": np.zeros(4, np.int64),
        "learning_rate": np.array(1, np.float32),
    }

    steps.step(feeds)
    first = steps.state()["w"].copy()
    handed_out = steps.state()["w"]
    steps.step(feeds)
    steps.step(feeds)

    np.testing.assert_array_equal(given, W)
    np.testing.assert_array_equal(handed_out, first)
    assert not np.shares_memory(steps.state()["w"], handed_out)


def value(array: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def test_one_buffer_for_an_input_and_an_output_is_refused() -> None:
    shared, other = np.zeros(8, np.float32), np.zeros(8, np.float32)

    check_apart([value(shared)], [value(other)])
    with pytest.raises(RuntimeError, match="shares memory"):
        check_apart([value(shared)], [value(shared)])
    with pytest.raises(RuntimeError, match="shares memory"):
        check_apart([value(other), value(shared[:4])], [value(shared[3:])])
    with pytest.raises(RuntimeError, match="shares memory"):
        check_apart([value(shared[2:4])], [value(shared)])
    with pytest.raises(RuntimeError, match="shares memory"):
        check_apart([], [value(shared), value(shared)])
    check_apart([value(shared[:4]), value(shared[:4])], [value(shared[4:])])


def test_why_it_is_refused_one_buffer_changes_the_result_in_silence() -> None:
    """The runtime itself takes one buffer for both, and some steps come out wrong: what the guard is there for."""
    model = he_mlp([64, 64, 64, 10])
    graphs = build_graphs(model, batch=10)
    weights = graphs.layout.unpack(np.frombuffer(split_weights(model).weights, "<f4"))
    session = LearningSession(graphs.train, "train", (), weights=None, threads=1)
    rng = np.random.default_rng(0)
    feeds = {
        "input": rng.standard_normal((10, 64)).astype(np.float32),
        "labels": rng.integers(0, 10, 10),
        "learning_rate": np.array(0.05, np.float32),
    }
    right = FeedSteps(session, weights, {})
    shared = {name: value(np.array(array)) for name, array in weights.items()}
    binding = session.runtime.io_binding()
    for name, one in shared.items():
        binding.bind_ortvalue_input(name, one)
        binding.bind_ortvalue_output(f"{name}.new", one)
    binding.bind_output("loss", "cpu")
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)

    for _ in range(3):
        right.step(feeds)
        session.runtime.run_with_iobinding(binding)

    difference = max(np.abs(shared[name].numpy() - array).max() for name, array in right.state().items())
    assert difference > 1e-4  # 8e-3 when this was written; without the sharing it is exactly 0


def test_ping_pong_refuses_a_state_of_another_graph() -> None:
    session = LearningSession(momentum_step(), "train", (), weights=None, threads=1)

    with pytest.raises(TrainingError, match="don't fit"):
        PingPongSteps(session, {"other": W}, {})


@pytest.mark.parametrize(
    "change", [{"intra_op_threads": 0}, {"intra_op_threads": 100_000}, {"buffers": "one"}], ids=str
)
def test_options_out_of_range_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(TrainingError):
        TrainerOptions(**change)


def test_noise_is_fresh_at_each_step_and_the_same_for_the_same_seed() -> None:
    session = LearningSession(noisy_step(), "train", (), weights=None, threads=1)

    first, again, later = noise(session, 5, 0), noise(session, 5, 0), noise(session, 5, 1)

    assert first["drop.uniform"].shape == (4, 3)
    assert first["drop.uniform"].dtype == np.float32
    np.testing.assert_array_equal(first["drop.uniform"], again["drop.uniform"])
    assert not np.array_equal(first["drop.uniform"], later["drop.uniform"])
    assert 0 <= first["drop.uniform"].min() < first["drop.uniform"].max() < 1


@pytest.mark.parametrize("change", [{"proximal_mu": 0.1}, {"gradient_clip": 1.0}], ids=str)
def test_an_option_that_the_graph_was_not_built_for_is_refused(change: dict[str, float]) -> None:
    trainer = Trainer(momentum_step(), evaluation(), LAYOUT)

    with pytest.raises(TrainingError, match="pack the model again"):
        trainer.train(W, one_column(7), replace(SETTINGS, **change))
