"""Max pooling where windows don't overlap: one element of each window gets all, also among equals."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.fakes.models import classifier
from tests.fakes.step_runs import session

from holdfast.autodiff.build import build_graphs

W = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)


def pooling(size: tuple[int, ...]) -> bytes:
    """x[batch, 2, *size] -> MaxPool -> scores."""
    rank = len(size)
    count = 2 * int(np.prod([each // 2 for each in size]))
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2] * rank, strides=[2] * rank),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["logits"]),
    ]
    return classifier(nodes, {"w": W[:count]}, inputs={"x": ("batch", 2, *size)})


def input_gradient(model: bytes, x: np.ndarray) -> np.ndarray:
    graph = build_graphs(model, batch=len(x)).input_gradient
    assert graph is not None
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_model_from_string(model).graph.initializer}
    (found,) = session(graph, b"").run(["x.gradient"], {**weights, "x": x, "labels": np.arange(len(x)) % 3})
    return np.asarray(found)


@pytest.mark.parametrize("size", [(8,), (4, 8), (4, 2, 4)], ids=["row", "image", "volume"])
def test_first_of_equal_maxima_gets_all(size: tuple[int, ...]) -> None:
    x = np.ones((3, 2, *size), np.float32)

    found = input_gradient(pooling(size), x)

    firsts = (slice(None), slice(None), *(slice(0, None, 2) for _ in size))
    elsewhere = found.copy()
    elsewhere[firsts] = 0
    assert np.all(found[firsts] != 0)
    assert not elsewhere.any()


def test_equal_maxima_on_a_diagonal_give_one_of_them_all() -> None:
    x = np.zeros((2, 2, 4, 4), np.float32)
    x[..., 0::2, 1::2] = x[..., 1::2, 0::2] = 5.0

    found = input_gradient(pooling((4, 4)), x)

    windows = found.reshape(2, 2, 2, 2, 2, 2).transpose(0, 1, 2, 4, 3, 5).reshape(-1, 4)
    assert np.all((windows != 0).sum(axis=1) == 1)
    assert not windows[:, [0, 3]].any()


@pytest.mark.parametrize("name", ["halves", "odd size", "overlapping"])
def test_only_windows_that_overlap_or_leave_something_out_are_asked_for_their_places(name: str) -> None:
    models = {"halves": pooling((4, 4)), "odd size": pooling((4, 5)), "overlapping": overlapping()}

    graph = build_graphs(models[name], batch=2).input_gradient

    assert graph is not None
    pools = [n for n in onnx.load_model_from_string(graph).graph.node if n.op_type == "MaxPool"]
    assert [len(pool.output) for pool in pools] == [1 if name == "halves" else 2]


def overlapping() -> bytes:
    nodes = [
        helper.make_node("MaxPool", ["x"], ["p"], kernel_shape=[2, 2], strides=[1, 1]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["logits"]),
    ]
    return classifier(nodes, {"w": W[:18]}, inputs={"x": ("batch", 2, 4, 4)})
