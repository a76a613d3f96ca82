"""Shapes that exporters compute in the graph from the batch: they are constants once the batch size is fixed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper
from tests.fakes.models import classifier

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.selfcheck import check_gradients
from holdfast.errors import AutodiffError

node = helper.make_node
RNG = np.random.default_rng(0)


def drawn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def batch_by_length(width: int) -> list[NodeProto]:
    """The shape [batch, width] in the way that exporters write it: Shape, Gather, Unsqueeze, Concat, Where."""
    return [
        node("Shape", ["x"], ["shape"]),
        node("Gather", ["shape", "zero"], ["size"]),
        node("Unsqueeze", ["size", "axis"], ["sizes"]),
        node("Concat", ["sizes", "width"], ["wide"], axis=0),
        node("ConstantOfShape", ["marks"], ["ones"], value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("Mul", ["ones", "minus"], ["unknown"]),
        node("Equal", ["wide", "unknown"], ["is_unknown"]),
        node("Where", ["is_unknown", "ones", "wide"], ["target"]),
    ]


def integers(**values: object) -> dict[str, np.ndarray]:
    return {name: np.array(value, np.int64) for name, value in values.items()}


def assert_learns(model: bytes, learns: set[str]) -> None:
    graphs = build_graphs(model, batch=3)

    assert {entry.name for entry in graphs.parameters} == learns
    assert check_gradients(graphs, split_weights(model, layout=graphs.layout).weights).passed


def test_a_table_that_is_read_at_places_stretched_to_the_batch_learns() -> None:
    """What BERT does with the kinds of its tokens."""
    nodes = [
        *batch_by_length(4),
        node("Expand", ["kinds", "target"], ["places"]),
        node("Gather", ["table", "places"], ["kind"]),
        node("Reshape", ["kind", "flat"], ["row"]),
        node("Add", ["x", "row"], ["sum"]),
        node("MatMul", ["sum", "head"], ["logits"]),
    ]
    fixed = integers(zero=0, axis=[0], width=[4], marks=[2], minus=-1, kinds=[[0, 1, 1, 0]], flat=[0, 8])
    weights = {"table": drawn(2, 2), "head": drawn(8, 3), **fixed}

    assert_learns(classifier(nodes, weights, inputs={"x": ("batch", 8)}), {"table", "head"})


def test_scales_of_a_resize_are_settings_and_do_not_learn() -> None:
    """They are float32 of rank 1, as a bias is, and some exporters keep them as an initializer."""
    nodes = [
        node("Mul", ["x", "w"], ["h"]),
        node("Resize", ["h", "", "scales"], ["wide"], mode="nearest"),
        node("Flatten", ["wide"], ["flat"]),
        node("MatMul", ["flat", "head"], ["logits"]),
    ]
    weights = {"w": drawn(2, 1, 1), "head": drawn(64, 3), "scales": np.array([1, 1, 2, 2], np.float32)}

    assert_learns(classifier(nodes, weights, inputs={"x": ("batch", 2, 2, 4)}), {"w", "head"})


def test_shapes_of_an_earlier_round_do_not_outlive_it() -> None:
    """The package's inference keeps an unknown size that it found before, even beside an initializer that has one."""
    nodes = [
        *batch_by_length(1),
        node("Expand", ["first", "target"], ["places"]),
        node("Gather", ["table", "places"], ["picked"]),
        node("Squeeze", ["picked", "axis1"], ["row"]),
        node("Mul", ["x", "row"], ["made"]),
        node("MatMul", ["made", "head"], ["logits"]),
    ]
    fixed = integers(zero=0, axis=[0], width=[1], marks=[2], minus=-1, first=[[1]], axis1=[1])
    model = classifier(nodes, {"table": drawn(2, 6), "head": drawn(6, 3), **fixed}, inputs={"x": ("batch", 6)})
    stale = onnx.load_model_from_string(model)
    stale.graph.value_info.append(helper.make_tensor_value_info("picked", TensorProto.FLOAT, ["any", "one", 6]))

    assert_learns(stale.SerializeToString(), {"table", "head"})


def branch(
    name: str, nodes: list[NodeProto], made: str, stored: dict[str, np.ndarray] | None = None
) -> onnx.GraphProto:
    tensors = [onnx.numpy_helper.from_array(value, key) for key, value in (stored or {}).items()]
    return helper.make_graph(nodes, name, [], [helper.make_empty_tensor_value_info(made)], tensors)


def squeezed_if_it_has_one(condition: list[NodeProto], *, last: int) -> tuple[list[NodeProto], dict[str, np.ndarray]]:
    """x.squeeze(2) of x[batch, 4, last], as an exporter writes it, and a classifier of what comes out."""
    asked = node(
        "If",
        ["is_one"],
        ["s"],
        name="choice",
        then_branch=branch("then", [node("Squeeze", ["h", "at"], ["a"])], "a", {"at": np.array([2])}),
        else_branch=branch("else", [node("Identity", ["h"], ["b"])], "b"),
    )
    head = [node("Flatten", ["s"], ["f"]), node("MatMul", ["f", "head"], ["logits"])]
    weights = {"w": drawn(4, 1), "head": drawn(4 * last, 3), **integers(two=2, one=1)}
    return [node("Mul", ["x", "w"], ["h"]), *condition, asked, *head], weights


SIZE_IS_ONE = [
    node("Shape", ["h"], ["shape"]),
    node("Gather", ["shape", "two"], ["size"]),
    node("Equal", ["size", "one"], ["is_one"]),
]


@pytest.mark.parametrize("last", [1, 2])
def test_the_branch_that_a_static_size_takes_is_inlined(last: int) -> None:
    nodes, weights = squeezed_if_it_has_one(SIZE_IS_ONE, last=last)

    assert_learns(classifier(nodes, weights, inputs={"x": ("batch", 4, last)}), {"w", "head"})


def test_a_branch_that_samples_choose_is_refused_by_name() -> None:
    condition = [
        node("ReduceSum", ["h"], ["sum"], keepdims=0),
        node("Greater", ["sum", "level"], ["is_one"]),
    ]
    nodes, weights = squeezed_if_it_has_one(condition, last=1)
    weights["level"] = np.array(0, np.float32)

    with pytest.raises(AutodiffError, match=r"'choice' \(If\)"):
        build_graphs(classifier(nodes, weights, inputs={"x": ("batch", 4, 1)}), batch=3)


def test_a_quantised_activation_is_refused_by_name() -> None:
    """Integers have no slope: without a word, the weights in front would get no gradient, or half of one."""
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("QuantizeLinear", ["h", "scale", "zero"], ["q"], name="quantiser"),
        node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        node("Add", ["d", "h"], ["s"]),
        node("MatMul", ["s", "head"], ["logits"]),
    ]
    weights = {"w": drawn(4, 4), "head": drawn(4, 3), "scale": np.array(0.1, np.float32), "zero": np.array(0, np.int8)}
    model = classifier(nodes, weights, inputs={"x": ("batch", 4)})

    with pytest.raises(AutodiffError, match=r"'quantiser' \(QuantizeLinear\) makes integers"):
        build_graphs(model, batch=3)
    assert [entry.name for entry in build_graphs(model, batch=3, trainable=["head"]).parameters] == ["head"]
