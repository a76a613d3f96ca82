"""A bundle learns on a device only if its graphs are the served model's, and their gradient is right there."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import pytest
from tests.fakes.models import he_mlp
from tests.fakes.trainable_bundles import numbers, packed, packed_with, samples, served_only

from holdfast.author.pack import TrainingPlan
from holdfast.autodiff.build import StepOptions, build_graphs
from holdfast.bundle.files import EVALUATE_GRAPH, KIND, TRAIN_GRAPH
from holdfast.errors import BundleError, TrainingError
from holdfast.learn.data import LocalDataset
from holdfast.learn.device_check import check_on_device
from holdfast.learn.trainable import TrainableBundle, open_trainable
from holdfast.learn.trainer import Trainer
from holdfast.wire.container import read_container, write_container


def dataset(opened: TrainableBundle, count: int = 30) -> LocalDataset:
    arrays = samples(count)
    return LocalDataset.from_arrays({"input": arrays["x"], "y": arrays["y"]}, opened.contract)


def with_graph(opened: TrainableBundle, name: str, graph: bytes) -> TrainableBundle:
    """As if the bundle had held another graph: what its hashes would have refused."""
    files = {**opened.bundle.files, name: graph}
    trainer = Trainer(files[TRAIN_GRAPH], files[EVALUATE_GRAPH], opened.layout)
    return dataclasses.replace(opened, bundle=dataclasses.replace(opened.bundle, files=files), trainer=trainer)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("trainable", ["all", "layer1.*"])
def test_right_gradient_passes(softmax: bool, trainable: str) -> None:
    opened = open_trainable(packed(softmax=softmax, trainable=trainable))

    check = check_on_device(opened, dataset(opened))

    assert check.gradient_error < 0.03
    assert check.rule_error < 1e-4
    assert check.gradient_norm > 0.1


def test_a_single_sample_is_enough_and_none_is_not() -> None:
    opened = open_trainable(packed())

    assert check_on_device(opened, dataset(opened, 1)).gradient_error < 0.05
    with pytest.raises(TrainingError, match="no samples"):
        check_on_device(opened, dataset(opened).take(np.empty(0, np.int64)))


def scaled(graph: bytes, factors: dict[str, float], slot: str = "") -> bytes:
    """A step graph that changes some parameters (or their slots) by so many times what it did before."""
    model = onnx.load_from_string(graph)
    for name, factor in factors.items():
        start, output = f"{name}{slot}", f"{name}{slot}.new"
        for node in model.graph.node:
            node.output[:] = [f"{output}.kept" if each == output else each for each in node.output]
        model.graph.initializer.append(
            onnx.helper.make_tensor(f"{output}.factor", onnx.TensorProto.FLOAT, (), [factor])
        )
        model.graph.node.extend(
            [
                onnx.helper.make_node("Sub", [f"{output}.kept", start], [f"{output}.change"]),
                onnx.helper.make_node("Mul", [f"{output}.change", f"{output}.factor"], [f"{output}.scaled"]),
                onnx.helper.make_node("Add", [start, f"{output}.scaled"], [output]),
            ]
        )
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("wrong", "factors"),
    [
        ("half", dict.fromkeys(("layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"), 0.5)),
        ("negated", dict.fromkeys(("layer0.weight", "layer0.bias", "layer1.weight", "layer1.bias"), -1.0)),
        ("one_parameter_negated", {"layer1.weight": -1.0}),
    ],
)
def test_wrong_gradient_is_refused(wrong: str, factors: dict[str, float]) -> None:
    opened = open_trainable(packed())

    with pytest.raises(TrainingError, match="gradient is wrong on this machine"):
        check_on_device(with_graph(opened, TRAIN_GRAPH, scaled(opened.train_graph, factors)), dataset(opened))


def test_graphs_of_another_model_are_refused() -> None:
    opened = open_trainable(packed())
    other = build_graphs(_without_activation(), batch=10)

    with pytest.raises(TrainingError, match="not of the served model"):
        check_on_device(with_graph(opened, EVALUATE_GRAPH, other.evaluate), dataset(opened))


def test_a_training_graph_that_is_not_the_manifests_is_refused() -> None:
    files = read_container(packed(), KIND)
    files[TRAIN_GRAPH] = build_graphs(he_mlp([4, 8, 3]), batch=11).train  # in itself a good graph

    with pytest.raises(BundleError, match=r"graphs/train\.onnx"):
        open_trainable(write_container(KIND, files))


def test_a_bundle_that_is_only_served_does_not_learn() -> None:
    with pytest.raises(TrainingError, match="packed to be served"):
        open_trainable(served_only())


def _without_activation() -> bytes:
    """The same parameters in another network."""
    model = onnx.load_from_string(he_mlp([4, 8, 3]))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Identity"
    return model.SerializeToString()


LOSSES = ("softmax_cross_entropy:class_weights=1/3,label_smoothing=0.1", "binary_cross_entropy", "mse", "l1", "huber")
OPTIMIZERS = ("sgd:weight_decay=0.1", "momentum", "nesterov:weight_decay=0.1", "adam", "adamw:weight_decay=0.1")


def opened_with(loss: str, optimizer: str, **more: float | StepOptions) -> tuple[TrainableBundle, LocalDataset]:
    opened = open_trainable(packed_with(TrainingPlan(batch=10, loss=loss, optimizer=optimizer, **more)))
    x = numbers(30)["x"]
    labels = (x[:, :2] > 0).astype(np.float32) if opened.contract.target_shape else np.argmax(x[:, :2], axis=1)
    return opened, LocalDataset.from_arrays({"input": x, "y": labels}, opened.contract)


@pytest.mark.parametrize(("loss", "optimizer"), list(zip(LOSSES, OPTIMIZERS, strict=True)))
def test_every_loss_and_optimizer_passes(loss: str, optimizer: str) -> None:
    check = check_on_device(*opened_with(loss, optimizer, proximal_mu=0.1, gradient_clip=1.0))

    assert check.gradient_error < 0.05
    assert check.rule_error < 1e-4


@pytest.mark.parametrize(("optimizer", "slot"), [("sgd", ""), ("adam", ".m"), ("nesterov", ".momentum")])
@pytest.mark.parametrize("name", ["layer0.weight", "layer1.bias"])
def test_a_gradient_that_is_zero_where_it_should_not_be_is_refused(optimizer: str, slot: str, name: str) -> None:
    opened, data = opened_with("mse", optimizer)
    zeroed = scaled(opened.train_graph, {name: 0.0}, slot)

    with pytest.raises(TrainingError, match="gradient is wrong on this machine"):
        check_on_device(with_graph(opened, TRAIN_GRAPH, zeroed), data)


@pytest.mark.parametrize(("optimizer", "constant"), [("adam", 0.999), ("momentum", 0.9), ("nesterov", 0.9)])
def test_an_optimizer_with_another_setting_than_the_manifests_is_refused(optimizer: str, constant: float) -> None:
    opened, data = opened_with("mse", optimizer)
    model = onnx.load_from_string(opened.train_graph)
    changed = 0
    for tensor in model.graph.initializer:
        value = onnx.numpy_helper.to_array(tensor) if not tensor.external_data else np.zeros(2)
        if value.shape == () and value.dtype == np.float32 and value == np.float32(constant):
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.float32(0.7) * value, tensor.name))
            changed += 1
    assert changed == 1

    with pytest.raises(TrainingError, match=f"not what {optimizer} makes of the gradient"):
        check_on_device(with_graph(opened, TRAIN_GRAPH, model.SerializeToString()), data)


def test_a_graph_of_another_optimizer_is_refused() -> None:
    opened, data = opened_with("mse", "adam")
    plain, _ = opened_with("mse", "sgd")

    with pytest.raises(TrainingError, match=r"lacks output 'layer0.weight.m.new', which adam has"):
        check_on_device(with_graph(opened, TRAIN_GRAPH, plain.train_graph), data)


@pytest.mark.parametrize("loss", LOSSES)
def test_graphs_of_another_model_are_refused_with_every_loss(loss: str) -> None:
    opened, data = opened_with(loss, "sgd")
    model = onnx.load_from_string(opened.bundle.files[EVALUATE_GRAPH])
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = "Identity"

    with pytest.raises(TrainingError, match="not of the served model"):
        check_on_device(with_graph(opened, EVALUATE_GRAPH, model.SerializeToString()), data)
