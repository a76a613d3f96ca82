"""Factors move into the matrix products beside them: fewer passes over memory, and the same result."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from holdfast.autodiff.scaling import factors_in_products

node = helper.make_node
SIZES = {"x": (4, 3), "w": (3, 5), "b": (5,), "v": (5, 2), "k": (3, 3)}
CONSTANTS = {
    "zero": np.array(0.0, np.float32),
    "half": np.array(0.5, np.float32),
    "third": np.array(1 / 3, np.float32),
    "pairs": np.array([2, 2, 5], np.int64),
    "rows": np.array([4, 5], np.int64),
    "row": np.full(5, 0.5, np.float32),
}
PRODUCT = node("Gemm", ["x", "w", "b"], ["p"])

# name: nodes that make y, and the operators that are left
CASES = {
    "behind a product": ([PRODUCT, node("Mul", ["p", "half"], ["q"]), node("Exp", ["q"], ["y"])], "Mul Gemm Exp"),
    "behind a product without a sum": (
        [node("Gemm", ["x", "w"], ["p"], alpha=2.0), node("Mul", ["half", "p"], ["q"]), node("Exp", ["q"], ["y"])],
        "Gemm Exp",
    ),
    "behind a reshaped product": (
        [
            node("Gemm", ["x", "w"], ["p"]),
            node("Reshape", ["p", "pairs"], ["r"]),
            node("Mul", ["r", "half"], ["q"]),
            node("Exp", ["q"], ["y"]),
        ],
        "Gemm Reshape Exp",
    ),
    "twice": (
        [PRODUCT, node("Mul", ["p", "half"], ["q"]), node("Mul", ["q", "third"], ["r"]), node("Exp", ["r"], ["y"])],
        "Mul Mul Gemm Exp",
    ),
    "before products": (
        [
            node("Exp", ["x"], ["e"]),
            node("Mul", ["e", "third"], ["q"]),
            node("Gemm", ["q", "w", "b"], ["p"], alpha=3.0),
            node("Gemm", ["q", "q"], ["s"], transA=1),
            node("Gemm", ["p", "v"], ["t"]),
            node("MatMul", ["s", "w"], ["u"]),
            node("MatMul", ["u", "v"], ["z"]),
            node("Concat", ["t", "z"], ["y"], axis=0),
        ],
        "Exp Gemm Gemm Gemm MatMul MatMul Concat",
    ),
    "read by something else": (
        [PRODUCT, node("Mul", ["p", "half"], ["q"]), node("Sub", ["q", "p"], ["y"])],
        "Gemm Mul Sub",
    ),
    "added by a product": (
        [
            node("Exp", ["b"], ["e"]),
            node("Mul", ["e", "half"], ["q"]),
            node("Gemm", ["x", "w", "q"], ["y"]),
        ],
        "Exp Mul Gemm",
    ),
    "a number per column": ([PRODUCT, node("Mul", ["p", "row"], ["q"]), node("Exp", ["q"], ["y"])], "Gemm Mul Exp"),
    "zero": ([PRODUCT, node("Mul", ["p", "zero"], ["q"]), node("Exp", ["q"], ["y"])], "Gemm Mul Exp"),
    "a sum that is multiplied as well": (
        [
            node("Exp", ["k"], ["e"]),
            node("Gemm", ["e", "e", "e"], ["p"]),
            node("Mul", ["p", "half"], ["q"]),
            node("Exp", ["q"], ["y"]),
        ],
        "Exp Mul Gemm Exp",
    ),
    "an output": ([PRODUCT, node("Mul", ["p", "half"], ["y"])], "Gemm Mul"),
    "before a reshape": (
        [
            node("Exp", ["x"], ["e"]),
            node("MatMul", ["e", "w"], ["p"]),
            node("Mul", ["p", "half"], ["q"]),
            node("Reshape", ["q", "pairs"], ["r"]),
            node("Exp", ["r"], ["y"]),
        ],
        "Exp MatMul Reshape Mul Exp",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_factor_moves_into_products_and_the_result_stays(name: str) -> None:
    nodes, operators = CASES[name]

    left = factors_in_products(nodes, CONSTANTS, ["y"])

    assert " ".join(each.op_type for each in left) == operators
    np.testing.assert_allclose(computed(left), computed(nodes), rtol=2e-6)


def test_nodes_that_are_handed_in_stay_as_they_are() -> None:
    nodes, _ = CASES["before products"]
    before = [each.SerializeToString() for each in nodes]

    factors_in_products(nodes, CONSTANTS, ["y"])

    assert [each.SerializeToString() for each in nodes] == before


def test_value_that_a_branch_reads_keeps_its_factor() -> None:
    body = helper.make_graph([node("Exp", ["q"], ["inner"])], "body", [], [])
    nodes = [PRODUCT, node("Mul", ["p", "half"], ["q"]), node("If", ["c"], ["y"], then_branch=body, else_branch=body)]

    left = factors_in_products(nodes, CONSTANTS, ["y"])

    assert [each.op_type for each in left] == ["Gemm", "Mul", "If"]


def computed(nodes: list[NodeProto]) -> np.ndarray:
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SIZES.items()}
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in SIZES.items()],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, feeds)
    return np.asarray(made)
