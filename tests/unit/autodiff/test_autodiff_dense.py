"""Layers over sequences as one product over all rows, and the gradient of a matrix over many of them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper
from tests.fakes.models import classifier

from holdfast.autodiff.build import StepOptions, TrainingGraphs, build_graphs
from holdfast.autodiff.dense import layers_as_products
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.reading import parse_model, read_forward
from holdfast.autodiff.selfcheck import measure_gradient

node = helper.make_node
STEPS, WIDTH, CLASSES = 64, 4, 6


def model(*layer: NodeProto, steps: int = STEPS) -> bytes:
    """A layer makes l of x: float32[batch, steps, WIDTH]; its mean over the steps is classified."""
    rng = np.random.default_rng(1)
    sizes = {"w": (WIDTH, CLASSES), "b": (CLASSES,), "places": (steps, CLASSES)}
    weights = {name: rng.standard_normal(size).astype(np.float32) for name, size in sizes.items()}
    nodes = [*layer, node("Erf", ["l"], ["e"]), node("ReduceMean", ["e", "axes"], ["logits"], keepdims=0)]
    read = {name for each in layer for name in each.input}
    kept = {name: value for name, value in weights.items() if name in read}
    return classifier(nodes, {**kept, "axes": np.array([1])}, inputs={"x": ("batch", steps, WIDTH)}, outputs=["logits"])


LAYER = (node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["l"]))


@pytest.mark.parametrize("order", [["m", "b"], ["b", "m"]])
def test_layer_with_a_bias_is_one_product_over_all_rows(order: list[str]) -> None:
    read = read_forward(parse_model(model(LAYER[0], node("Add", order, ["l"]))), 4)

    forward = layers_as_products(read)

    assert [each.op_type for each in forward.nodes] == ["Reshape", "Gemm", "Reshape", "Erf", "ReduceMean"]
    assert list(forward.nodes[1].input[1:]) == ["w", "b"]
    assert forward.shapes[forward.nodes[1].input[0]] == (4 * STEPS, WIDTH)
    assert forward.shapes[forward.nodes[1].output[0]] == (4 * STEPS, CLASSES)
    assert list(forward.nodes[2].output) == ["l"]


@pytest.mark.parametrize(
    "layer",
    [
        [node("MatMul", ["x", "w"], ["l"])],
        [LAYER[0], node("Add", ["m", "places"], ["l"])],
        [LAYER[0], node("Add", ["m", "b"], ["n"]), node("Sub", ["n", "m"], ["l"])],
    ],
    ids=["no bias", "no row", "product read twice"],
)
def test_anything_else_stays(layer: list[NodeProto]) -> None:
    forward = read_forward(parse_model(model(*layer)), 4)

    assert layers_as_products(forward) is forward


def test_gradient_over_many_rows_is_the_same_with_the_narrow_operand_swapped() -> None:
    swapped = build_graphs(model(*LAYER), batch=4)
    (choice,) = (each for each in swapped.choices if each.taken == "swapped")
    plain = build_graphs(model(*LAYER), batch=4, options=StepOptions(lowerings=((choice.where, "plain"),)))

    found, expected = gradient(swapped), gradient(plain)

    assert transposes(swapped) == transposes(plain) + 1
    assert np.linalg.norm(found - expected) <= 1e-6 * np.linalg.norm(expected)


def test_few_rows_leave_nothing_to_choose() -> None:
    graphs = build_graphs(model(*LAYER), batch=3)

    assert not graphs.choices


def transposes(graphs: TrainingGraphs) -> int:
    return sum(each.op_type == "Transpose" for each in onnx.load_model_from_string(graphs.train).graph.node)


def gradient(graphs: TrainingGraphs) -> np.ndarray:
    x = np.random.default_rng(2).standard_normal((4, STEPS, WIDTH)).astype(np.float32)
    weights = np.frombuffer(split_weights(model(*LAYER), layout=graphs.layout).weights, "<f4")
    feeds = {"x": x, "labels": np.array([0, 5, 2, -1])}
    return measure_gradient(graphs.train, graphs.layout, weights, feeds)
