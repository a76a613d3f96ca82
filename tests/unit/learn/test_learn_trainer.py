"""The trainer: it learns, it repeats itself bit by bit, and it ends cleanly where it can't go on."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import onnxruntime
import pytest
from sklearn.datasets import load_digits
from tests.fakes.clock import FakeClock
from tests.fakes.models import he_mlp

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.errors import FormatError, ModelError, TrainingError
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainProgress, TrainSettings
from holdfast.update.layout import FlatLayout

SETTINGS = TrainSettings(epochs=5, batch=10, learning_rate=0.1, seed=0)
DIGITS = DataContract((InputContract("input", "float32", (64,), minimum=0.0, maximum=1.0),), class_count=10)
SMALL = DataContract((InputContract("input", "float32", (4,)),), class_count=3)


@cache
def digits_model() -> tuple[TrainingGraphs, bytes]:
    model = he_mlp([64, 64, 64, 10])
    return build_graphs(model, batch=10), split_weights(model).weights


@cache
def small_model(trainable: str = "all") -> tuple[TrainingGraphs, bytes]:
    model = he_mlp([4, 8, 3])
    graphs = build_graphs(model, batch=10, trainable=trainable)
    return graphs, split_weights(model, layout=graphs.layout).weights


def trainer_of(graphs: TrainingGraphs, clock: FakeClock | None = None) -> Trainer:
    return Trainer(graphs.train, graphs.evaluate, graphs.layout, clock=clock)


def weights_of(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, "<f4")


def small_dataset(count: int, seed: int = 0) -> LocalDataset:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((count, 4)).astype(np.float32)
    return LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, :3], axis=1)}, SMALL)


def digits() -> tuple[LocalDataset, LocalDataset]:
    x, y = load_digits(return_X_y=True)
    dataset = LocalDataset.from_arrays({"input": (x / 16).astype(np.float32), "y": y}, DIGITS)
    return dataset.split(397 / 1797, seed=0)


def test_trainer_learns_the_handwritten_digits() -> None:
    graphs, raw = digits_model()
    train, held = digits()
    trainer = trainer_of(graphs)
    weights = weights_of(raw)

    result = trainer.train(weights, train, SETTINGS)
    after = trainer.evaluate(graphs.layout.add_delta(weights, result.delta), held)

    assert trainer.evaluate(weights, held).accuracy < 0.3
    assert after.accuracy >= 0.95
    assert result.loss_after < 0.1 < 1.0 < result.loss_before
    assert (result.sample_count, result.steps) == (1400, 700)
    assert after.count == held.count == 397
    assert not result.stopped_early


def test_trainer_one_step_is_the_formula_in_numpy() -> None:
    model = he_mlp([4, 3])
    graphs, weights = build_graphs(model, batch=10), weights_of(split_weights(model).weights)
    dataset = small_dataset(7)

    result = trainer_of(graphs).train(weights, dataset, replace(SETTINGS, epochs=1))

    tensors = {name: t.astype(np.float64) for name, t in graphs.layout.unpack(weights).items()}
    x = dataset.inputs["input"].astype(np.float64)
    logits = x @ tensors["layer0.weight"].T + tensors["layer0.bias"]
    error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(3)[dataset.labels]
    expected = -0.1 * np.concatenate([(error.T @ x / 7).reshape(-1), error.mean(axis=0)])
    np.testing.assert_allclose(result.delta, expected, atol=1e-6)


def test_trainer_repeats_itself_bit_by_bit() -> None:
    graphs, raw = digits_model()
    train, _ = digits()

    first = trainer_of(graphs).train(weights_of(raw), train, SETTINGS)
    trainer = trainer_of(graphs)
    second = trainer.train(weights_of(raw), train, SETTINGS)
    third = trainer.train(weights_of(raw), train, SETTINGS)
    other = trainer.train(weights_of(raw), train, replace(SETTINGS, seed=1))

    assert first.delta.tobytes() == second.delta.tobytes() == third.delta.tobytes()
    assert (first.loss_before, first.loss_after) == (second.loss_before, second.loss_after)
    assert first.delta.tobytes() != other.delta.tobytes()


def test_trainer_does_not_modify_the_weights_it_was_given() -> None:
    graphs, raw = small_model()
    weights = weights_of(raw).copy()

    trainer_of(graphs).train(weights, small_dataset(25), SETTINGS)

    assert weights.tobytes() == raw


@pytest.mark.parametrize("count", [1, 9, 10, 11])
def test_trainer_padding_does_not_count(count: int) -> None:
    graphs, raw = small_model()
    dataset = small_dataset(count)

    result = trainer_of(graphs).evaluate(weights_of(raw), dataset)

    tensors = graphs.layout.unpack(weights_of(raw))
    hidden = np.maximum(dataset.inputs["input"] @ tensors["layer0.weight"].T + tensors["layer0.bias"], 0)
    logits = (hidden @ tensors["layer1.weight"].T + tensors["layer1.bias"]).astype(np.float64)
    log_probability = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert result.count == count
    assert result.correct == int((logits.argmax(axis=1) == dataset.labels).sum())
    np.testing.assert_allclose(result.loss, -log_probability[np.arange(count), dataset.labels].mean(), rtol=1e-5)


def test_trainer_takes_a_smaller_batch_than_the_graphs_exactly() -> None:
    model = he_mlp([4, 8, 3])
    small, large = build_graphs(model, batch=5), build_graphs(model, batch=10)
    weights = weights_of(split_weights(model).weights)
    settings = replace(SETTINGS, batch=5)

    expected = trainer_of(small).train(weights, small_dataset(23), settings)
    padded = trainer_of(large).train(weights, small_dataset(23), settings)

    assert padded.steps == expected.steps == 25
    np.testing.assert_allclose(padded.delta, expected.delta, rtol=1e-4, atol=1e-6)


def test_trainer_measures_the_norm_of_the_first_gradient() -> None:
    graphs, raw = small_model()
    one_step = trainer_of(graphs).train(weights_of(raw), small_dataset(10), replace(SETTINGS, epochs=1))

    many = trainer_of(graphs).train(weights_of(raw), small_dataset(10), SETTINGS)

    assert one_step.gradient_norm == pytest.approx(one_step.delta_norm / 0.1, rel=1e-5)
    assert many.gradient_norm == pytest.approx(one_step.gradient_norm, rel=1e-5)


def test_trainer_learns_from_one_sample() -> None:
    graphs, raw = small_model()

    result = trainer_of(graphs).train(weights_of(raw), small_dataset(1), SETTINGS)

    assert result.loss_after < result.loss_before
    assert (result.sample_count, result.steps) == (1, 5)


def test_trainer_head_only_leaves_the_body_as_it_is_and_sends_only_the_head() -> None:
    graphs, raw = small_model("layer1.*")
    weights = weights_of(raw)

    result = trainer_of(graphs).train(weights, small_dataset(50), SETTINGS)
    changed = graphs.layout.add_delta(weights, result.delta)

    assert result.delta.size == 8 * 3 + 3
    assert result.loss_after < result.loss_before
    np.testing.assert_array_equal(graphs.layout.unpack(changed)["layer0.weight"], np.reshape(weights[:32], (8, 4)))


def test_trainer_head_only_uses_the_frozen_weights_of_this_call() -> None:
    graphs, raw = small_model("layer1.*")
    trainer = trainer_of(graphs)
    weights = weights_of(raw)
    other = weights.copy()
    other[:32] *= 2

    first = trainer.evaluate(weights, small_dataset(20)).loss

    assert trainer.evaluate(other, small_dataset(20)).loss != first
    assert trainer.evaluate(weights, small_dataset(20)).loss == first


def test_trainer_stops_at_its_deadline_with_what_it_has() -> None:
    clock = FakeClock()
    graphs, raw = small_model()
    settings = replace(SETTINGS, deadline_monotonic_s=clock.monotonic_s() + 3)

    result = trainer_of(graphs, clock).train(
        weights_of(raw), small_dataset(100), settings, progress=lambda _: clock.advance(1.0)
    )

    assert (result.steps, result.stopped_early) == (3, True)
    assert result.delta_norm > 0


def test_trainer_past_its_deadline_changes_nothing() -> None:
    clock = FakeClock()
    graphs, raw = small_model()

    result = trainer_of(graphs, clock).train(
        weights_of(raw), small_dataset(30), replace(SETTINGS, deadline_monotonic_s=clock.monotonic_s())
    )

    assert (result.steps, result.delta_norm, result.stopped_early) == (0, 0.0, True)


def test_trainer_reports_each_step() -> None:
    graphs, raw = small_model()
    seen: list[TrainProgress] = []

    trainer_of(graphs).train(weights_of(raw), small_dataset(25), replace(SETTINGS, epochs=2), progress=seen.append)

    assert [(p.epoch, p.step) for p in seen] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert {(p.epochs, p.steps) for p in seen} == {(2, 6)}


def test_trainer_refuses_to_go_on_when_training_diverges() -> None:
    graphs, raw = small_model()

    with pytest.raises(TrainingError, match=r"not finite|loss of step"):
        trainer_of(graphs).train(weights_of(raw), small_dataset(50), replace(SETTINGS, learning_rate=1e30))


def test_trainer_refuses_weights_that_give_no_finite_loss() -> None:
    graphs, raw = small_model()
    weights = np.full_like(weights_of(raw), np.nan)

    with pytest.raises(TrainingError, match="not finite"):
        trainer_of(graphs).train(weights, small_dataset(10), SETTINGS)


@pytest.mark.parametrize(
    ("defect", "change", "message"),
    [
        ("no_epochs", {"epochs": 0}, "epochs"),
        ("batch_larger_than_the_graphs", {"batch": 11}, "built for batch 10, asked for 11"),
        ("batch_zero", {"batch": 0}, "asked for 0"),
        ("rate_zero", {"learning_rate": 0.0}, "learning rate"),
        ("rate_nan", {"learning_rate": float("nan")}, "learning rate"),
        ("seed_negative", {"seed": -1}, "seed"),
    ],
)
def test_trainer_refuses_settings(defect: str, change: dict[str, float], message: str) -> None:
    graphs, raw = small_model()

    with pytest.raises(TrainingError, match=message):
        trainer_of(graphs).train(weights_of(raw), small_dataset(10), replace(SETTINGS, **change))


def test_trainer_refuses_an_empty_hold_out() -> None:
    graphs, raw = small_model()
    _, held = small_dataset(1).split(0.5, 0)

    with pytest.raises(TrainingError, match="no samples"):
        trainer_of(graphs).evaluate(weights_of(raw), held)


def test_trainer_refuses_samples_of_another_model() -> None:
    graphs, raw = digits_model()

    with pytest.raises(TrainingError, match="graph failed"):
        trainer_of(graphs).train(weights_of(raw), small_dataset(10), SETTINGS)


def test_trainer_refuses_weights_of_another_size() -> None:
    graphs, raw = small_model()

    with pytest.raises(FormatError, match="weights must be"):
        trainer_of(graphs).train(weights_of(raw)[:-1].copy(), small_dataset(10), SETTINGS)


@pytest.mark.parametrize("graph", [b"", b"not a graph", b"\x08\x0a" * 9])
def test_trainer_refuses_bytes_that_are_no_graph(graph: bytes) -> None:
    graphs, raw = small_model()

    with pytest.raises(ModelError):
        Trainer(graph, graphs.evaluate, graphs.layout).train(weights_of(raw), small_dataset(3), SETTINGS)


def test_trainer_refuses_a_graph_for_another_layout() -> None:
    graphs, _ = small_model()
    layout = FlatLayout.from_shapes([("other", (3,))])

    with pytest.raises(TrainingError, match=r"lacks output 'other\.new'"):
        Trainer(graphs.train, graphs.evaluate, layout).train(np.zeros(3, np.float32), small_dataset(3), SETTINGS)


def test_trainer_refuses_a_layout_without_trainable_parameters() -> None:
    graphs, _ = small_model()

    with pytest.raises(TrainingError, match="no trainable"):
        Trainer(graphs.train, graphs.evaluate, FlatLayout.from_shapes([("w", (1,))], trainable=[]))


def test_trainer_refuses_a_graph_that_reads_other_files() -> None:
    graphs, raw = small_model("layer1.*")
    train = graphs.train.replace(b"weights.bin", b"secrets.bin")

    with pytest.raises(TrainingError, match=r"'secrets\.bin'"):
        Trainer(train, graphs.evaluate, graphs.layout).train(weights_of(raw), small_dataset(3), SETTINGS)


def test_trained_weights_go_back_into_the_served_model_without_a_protobuf() -> None:
    model = he_mlp([4, 8, 3])
    skeleton, raw, layout = split_weights(model)
    graphs, dataset = build_graphs(model, batch=10), small_dataset(40)
    trainer = trainer_of(graphs)

    delta = trainer.train(weights_of(raw), dataset, SETTINGS).delta
    trained = layout.add_delta(weights_of(raw), delta)

    options = onnxruntime.SessionOptions()
    blob = trained.tobytes()
    options.add_external_initializers_from_files_in_memory(["weights.bin"], [blob], [len(blob)])
    served = onnxruntime.InferenceSession(skeleton, options, providers=["CPUExecutionProvider"])
    (logits,) = served.run(None, {"input": dataset.inputs["input"]})
    assert int((logits.argmax(axis=1) == dataset.labels).sum()) == trainer.evaluate(trained, dataset).correct


def test_trainer_needs_neither_onnx_nor_torch() -> None:
    script = "import sys, holdfast.learn.trainer; print([m for m in ('onnx', 'torch', 'flwr') if m in sys.modules])"

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == "[]"


def test_trainer_pauses_for_serving_and_learns_the_same() -> None:
    clock, asked = FakeClock(), []
    graphs, raw = small_model()
    started = clock.monotonic_s()

    def should_pause() -> bool:
        asked.append(True)
        return len(asked) % 2 == 1

    result = trainer_of(graphs, clock).train(weights_of(raw), small_dataset(25), SETTINGS, should_pause=should_pause)

    assert len(asked) == 2 * result.steps
    assert clock.monotonic_s() - started > 1.0
    assert (
        result.delta.tobytes() == trainer_of(graphs).train(weights_of(raw), small_dataset(25), SETTINGS).delta.tobytes()
    )


def test_trainer_ends_with_what_it_has_when_serving_never_lets_it_go_on() -> None:
    clock, steps = FakeClock(), []
    graphs, raw = small_model()

    result = trainer_of(graphs, clock).train(
        weights_of(raw), small_dataset(25), SETTINGS, steps.append, should_pause=lambda: len(steps) == 4
    )

    assert (result.steps, result.stopped_early) == (4, True)
    assert result.delta_norm > 0
