"""Rewriting graphs: what changes nothing goes, what it computed stays; and how many nodes whole networks take."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.fakes.models import classifier
from tests.vectors.autodiff.networks import NETWORKS

from holdfast.autodiff.build import StepOptions, build_graphs
from holdfast.autodiff.reading import parse_model, read_forward
from holdfast.autodiff.simplify import pool_before_relu, without_redundant

node = helper.make_node
CONSTANTS = {
    "one": np.array(1.0, np.float32),
    "zero": np.array(0.0, np.float32),
    "two": np.array(2.0, np.float32),
    "ones": np.ones((3, 1), np.float32),
    "flat": np.array([6], np.int64),
    "wide": np.array([2, 3], np.int64),
    "copied": np.array([0, 3], np.int64),
}

# name: nodes, and the operators that must be left with what the output node reads
CASES = {
    "times one": ([node("Mul", ["x", "one"], ["a"]), node("Exp", ["a"], ["y"])], ["Exp"], "x"),
    "one times": ([node("Mul", ["one", "x"], ["a"]), node("Exp", ["a"], ["y"])], ["Exp"], "x"),
    "by one": ([node("Div", ["x", "one"], ["a"]), node("Exp", ["a"], ["y"])], ["Exp"], "x"),
    "less zero": ([node("Sub", ["x", "zero"], ["a"]), node("Exp", ["a"], ["y"])], ["Exp"], "x"),
    "one by": ([node("Div", ["one", "x"], ["a"]), node("Exp", ["a"], ["y"])], ["Div", "Exp"], "a"),
    "zero less": ([node("Sub", ["zero", "x"], ["a"]), node("Exp", ["a"], ["y"])], ["Sub", "Exp"], "a"),
    "times two": ([node("Mul", ["x", "two"], ["a"]), node("Exp", ["a"], ["y"])], ["Mul", "Exp"], "a"),
    "stretched by ones": ([node("Mul", ["x", "ones"], ["a"]), node("Exp", ["a"], ["y"])], ["Mul", "Exp"], "a"),
    "sum of one": ([node("Sum", ["x"], ["a"]), node("Exp", ["a"], ["y"])], ["Exp"], "x"),
    "chain": (
        [node("Mul", ["x", "one"], ["a"]), node("Identity", ["a"], ["b"]), node("Exp", ["b"], ["y"])],
        ["Exp"],
        "x",
    ),
    "negated twice": (
        [node("Neg", ["x"], ["a"]), node("Neg", ["a"], ["b"]), node("Exp", ["b"], ["y"])],
        ["Neg", "Exp"],
        "x",
    ),
    "transposed back": (
        [
            node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
            node("Transpose", ["a"], ["b"], perm=[2, 0, 1]),
            node("Exp", ["b"], ["y"]),
        ],
        ["Transpose", "Exp"],
        "x",
    ),
    "reshaped twice": (
        [node("Reshape", ["x", "flat"], ["a"]), node("Reshape", ["a", "wide"], ["y"])],
        ["Reshape", "Reshape"],
        "x",
    ),
    "reshaped with a copied size": (
        [node("Reshape", ["x", "flat"], ["a"]), node("Reshape", ["a", "copied"], ["y"])],
        ["Reshape", "Reshape"],
        "a",
    ),
    "an output": ([node("Mul", ["x", "one"], ["y"])], ["Mul"], "x"),
}


@pytest.mark.parametrize("name", CASES)
def test_node_that_changes_nothing_is_not_read_any_more(name: str) -> None:
    nodes, operators, read = CASES[name]

    left = without_redundant(nodes, CONSTANTS, ["y"])

    assert [each.op_type for each in left] == operators
    assert left[-1].input[0] == read
    assert list(left[-1].output) == ["y"]


def test_two_transposes_become_the_one_that_they_are_together() -> None:
    nodes = [
        node("Transpose", ["x"], ["a"], perm=[1, 2, 0]),
        node("Transpose", ["a"], ["y"], perm=[1, 0, 2]),
    ]

    last = without_redundant(nodes, {}, ["y"])[-1]

    x = np.arange(24).reshape(2, 3, 4)
    order = list(last.attribute[0].ints)
    assert last.input[0] == "x"
    np.testing.assert_array_equal(x.transpose(order), x.transpose(1, 2, 0).transpose(1, 0, 2))


def test_value_that_a_branch_reads_keeps_its_name() -> None:
    body = helper.make_graph([node("Exp", ["a"], ["b"])], "body", [], [])
    nodes = [node("Mul", ["x", "one"], ["a"]), node("If", ["c"], ["y"], then_branch=body, else_branch=body)]

    left = without_redundant(nodes, CONSTANTS, ["y"])

    assert [each.op_type for each in left] == ["Mul", "If"]


def pooled(*, relu_read_twice: bool) -> bytes:
    nodes = [
        node("Relu", ["x"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "w"], ["logits"]),
    ]
    if relu_read_twice:
        nodes[3:] = [
            node("GlobalAveragePool", ["r"], ["g"]),
            node("Flatten", ["g"], ["h"]),
            node("Concat", ["f", "h"], ["j"], axis=1),
            node("Gemm", ["j", "w"], ["logits"]),
        ]
    rows = 9 if relu_read_twice else 8
    return classifier(nodes, {"w": np.ones((rows, 3), np.float32)}, inputs={"x": ("batch", 1, 4, 8)})


def test_maximum_is_taken_before_the_values_are_rectified() -> None:
    forward = pool_before_relu(read_forward(parse_model(pooled(relu_read_twice=False)), 2))

    assert [each.op_type for each in forward.nodes] == ["MaxPool", "Relu", "Flatten", "Gemm"]
    pool, relu = forward.nodes[:2]
    assert list(pool.input) == ["x"]
    assert list(relu.input) == list(pool.output)
    assert list(relu.output) == ["p"]
    assert forward.shapes[pool.output[0]] == (2, 1, 2, 4)


def test_rectified_value_that_is_read_elsewhere_stays() -> None:
    forward = read_forward(parse_model(pooled(relu_read_twice=True)), 2)

    assert pool_before_relu(forward) is forward


# Golden counts: a rule that emits more than it did must be looked at, and the figure changed with the reason.
NODES = {
    "cnn": 161,
    "transformer": 334,
    "mobile_net_frozen": 385,
    "mobile_net_averaged": 671,
    "lstm": 739,
    "vision_transformer": 252,
}


@pytest.mark.parametrize("name", NODES)
def test_training_step_has_no_more_nodes_than_it_had(name: str) -> None:
    net = NETWORKS[name]
    graphs = build_graphs(net.model, batch=len(net.labels), options=StepOptions(batch_norm=net.batch_norm))

    operators = Counter(each.op_type for each in onnx.load_model_from_string(graphs.train).graph.node)

    assert operators.total() == NODES[name], operators
