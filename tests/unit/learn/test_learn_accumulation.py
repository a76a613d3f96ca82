"""Steps over several batches: k batches of b samples give what one batch of k b gives, and resume to the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from tests.fakes.models import he_mlp
from tests.fakes.trainable_bundles import numbers, packed_with
from tests.unit.learn.test_learn_device_check import scaled, with_graph

from holdfast.author.pack import TrainingPlan
from holdfast.autodiff.build import StepOptions, TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.bundle.files import APPLY_GRAPH
from holdfast.errors import AutodiffError, TrainingError
from holdfast.learn.checkpoint import CheckpointFile
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.device_check import check_on_device
from holdfast.learn.trainable import open_trainable
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import Accumulation, TrainProgress, TrainSettings

MODEL = he_mlp([4, 8, 3])
SETTINGS = TrainSettings(epochs=3, batch=4, learning_rate=0.02, seed=1)
INPUTS = (InputContract("input", "float32", (4,)),)


def dataset(loss: str, count: int = 33) -> LocalDataset:
    x = np.random.default_rng(0).standard_normal((count, 4)).astype(np.float32)
    if loss.startswith("softmax"):
        return LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, :3], axis=1)}, DataContract(INPUTS, 3))
    contract = DataContract(INPUTS, 0, target_shape=(3,))
    return LocalDataset.from_arrays({"input": x, "y": (x[:, :3] > 0).astype(np.float32)}, contract)


def start(graphs: TrainingGraphs) -> np.ndarray:
    return np.frombuffer(split_weights(MODEL, layout=graphs.layout).weights, "<f4")


def accumulating(graphs: TrainingGraphs, batches: int) -> Trainer:
    assert graphs.accumulate is not None
    assert graphs.apply is not None
    pair = Accumulation(graphs.accumulate, graphs.apply, batches)
    return Trainer(graphs.train, graphs.evaluate, graphs.layout, accumulation=pair)


@pytest.mark.parametrize(
    ("loss", "optimizer", "options"),
    [
        ("softmax_cross_entropy", "sgd", StepOptions()),
        ("softmax_cross_entropy:class_weights=1/2/5,label_smoothing=0.1", "momentum", StepOptions(clip=True)),
        ("mse", "adam", StepOptions(proximal=True, clip=True)),
        ("binary_cross_entropy", "nesterov", StepOptions(proximal=True)),
        ("huber", "adamw", StepOptions()),
    ],
)
@pytest.mark.parametrize("trainable", ["all", "layer1.*"])
def test_batches_that_are_added_up_give_what_one_large_batch_gives(
    loss: str, optimizer: str, options: StepOptions, trainable: str
) -> None:
    large = build_graphs(MODEL, batch=12, loss=loss, optimizer=optimizer, options=options, trainable=trainable)
    options = replace(options, accumulate=True)
    small = build_graphs(MODEL, batch=4, loss=loss, optimizer=optimizer, options=options, trainable=trainable)
    numbers_of_round = {"proximal_mu": 0.1 * options.proximal, "gradient_clip": 0.3 * options.clip}
    settings = replace(SETTINGS, **numbers_of_round)
    weights, data = start(large), dataset(loss)

    whole = Trainer(large.train, large.evaluate, large.layout).train(weights, data, replace(settings, batch=12))
    summed = accumulating(small, 3).train(weights, data, settings)

    assert summed.steps == whole.steps == 9
    difference = np.linalg.norm(summed.delta - whole.delta) / np.linalg.norm(whole.delta)
    weights_after = np.linalg.norm(large.layout.add_delta(weights, whole.delta))
    assert difference < 1e-5
    assert np.linalg.norm(summed.delta - whole.delta) <= 1e-6 * weights_after
    assert summed.loss_after == pytest.approx(whole.loss_after, rel=1e-5)


def test_dropout_draws_afresh_for_every_batch_of_a_step() -> None:
    model = onnx.load_from_string(MODEL)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    dropped = onnx.helper.make_node("Dropout", [relu.output[0]], ["dropped"])
    model.graph.node.insert(list(model.graph.node).index(relu) + 1, dropped)
    next(node for node in model.graph.node if node.name == "gemm1").input[0] = "dropped"
    graphs = build_graphs(model.SerializeToString(), batch=4, options=StepOptions(dropout=True, accumulate=True))
    data = dataset("softmax").take(np.zeros(8, np.int64))

    deltas = [
        accumulating(graphs, count).train(start(graphs), data, replace(SETTINGS, epochs=1)).delta for count in (1, 2)
    ]

    assert np.all(np.isfinite(deltas[1]))
    again = accumulating(graphs, 2).train(start(graphs), data, replace(SETTINGS, epochs=1)).delta
    np.testing.assert_array_equal(deltas[1], again)


def test_a_killed_training_with_added_up_batches_resumes_to_the_same_bits(tmp_path: Path) -> None:
    graphs = build_graphs(MODEL, batch=4, optimizer="adam", options=StepOptions(accumulate=True))
    data, weights = dataset("softmax"), start(graphs)
    whole = accumulating(graphs, 3).train(weights, data, SETTINGS)

    def kill(at: TrainProgress) -> None:
        if at.step == 5:
            raise KeyboardInterrupt

    file = CheckpointFile(tmp_path / "checkpoint")
    with pytest.raises(KeyboardInterrupt):
        accumulating(graphs, 3).train(weights, data, SETTINGS, kill, checkpoint=file)
    resumed = accumulating(graphs, 3).train(weights, data, SETTINGS, checkpoint=file)

    assert resumed.resumed_epochs == 1
    np.testing.assert_array_equal(resumed.delta, whole.delta)
    assert accumulating(graphs, 2).train(weights, data, SETTINGS, checkpoint=file).resumed_epochs == 0


def test_statistics_of_a_batch_cannot_be_added_up() -> None:
    with pytest.raises(AutodiffError, match="freeze them"):
        build_graphs(MODEL, batch=4, options=StepOptions(batch_norm="local", accumulate=True))


def test_a_bundle_of_such_steps_is_packed_checked_and_refused_when_wrong() -> None:
    plan = TrainingPlan(batch=4, loss="mse", optimizer="adam", accumulate=3, gradient_clip=1.0, proximal_mu=0.0)
    opened = open_trainable(packed_with(plan))
    arrays = numbers(33)
    data = LocalDataset.from_arrays({"input": arrays["x"], "y": arrays["y"]}, opened.contract)

    assert check_on_device(opened, data).rule_error < 1e-4
    assert opened.trainer.train(opened.weights, data, SETTINGS).steps == 9

    wrong = scaled(opened.bundle.files[APPLY_GRAPH], {"layer1.weight": 1.01})
    with pytest.raises(TrainingError, match="not what adam makes of the gradient"):
        check_on_device(with_graph(opened, APPLY_GRAPH, wrong), data)
