"""Every gradient rule against torch float64 (golden vectors) and onnx-ad (live), at both optimisation levels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ad
import onnxruntime
import pytest
from tests.vectors.autodiff.cases import OPERATOR_CASES, Case, mlp

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.registry import RULES
from holdfast.autodiff.selfcheck import measure_gradient

GOLDEN = Path(__file__).parents[2] / "vectors" / "autodiff" / "torch_float64.npz"
RULE_TOLERANCE = 1e-5  # relative to the largest element of the reference
NETWORK_TOLERANCE = 5e-6  # relative 2-norm over the whole gradient
CASES = {case.name: case for case in OPERATOR_CASES}


@cache
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        return dict(archive)


@cache
def graphs_of(name: str) -> tuple[TrainingGraphs, bytes]:
    case = CASES[name]
    model = case.model()
    return build_graphs(model, batch=len(case.labels), tied=case.tied), split_weights(model).weights


def feeds_of(case: Case) -> dict[str, np.ndarray]:
    return {"x": case.input_values(), "labels": np.array(case.labels, np.int64)}


def session(graph: bytes, *, optimize: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.abs(got - expected).max() <= RULE_TOLERANCE * largest


def parameter_gradients(name: str, *, optimize: bool) -> dict[str, np.ndarray]:
    graphs, weights = graphs_of(name)
    flat = np.frombuffer(weights, "<f4")
    gradient = measure_gradient(graphs.train, graphs.layout, flat, feeds_of(CASES[name]), optimize=optimize)
    found, start = {}, 0
    for entry in graphs.parameters:
        found[entry.name] = gradient[start : start + entry.element_count].reshape(entry.shape)
        start += entry.element_count
    return found


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as_written"])
@pytest.mark.parametrize("name", CASES)
def test_rule_parameter_gradient_is_that_of_torch(name: str, *, optimize: bool) -> None:
    found = parameter_gradients(name, optimize=optimize)

    assert set(found) == set(CASES[name].weights)
    for parameter, gradient in found.items():
        assert_close(gradient, golden()[f"{name}/{parameter}"])


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as_written"])
@pytest.mark.parametrize("name", CASES)
def test_rule_input_gradient_is_that_of_torch(name: str, *, optimize: bool) -> None:
    graphs, weights = graphs_of(name)
    assert graphs.input_gradient is not None
    tensors = graphs.layout.unpack(np.frombuffer(weights, "<f4"))

    run = session(graphs.input_gradient, optimize=optimize)
    feeds = {**tensors, **feeds_of(CASES[name])}
    (gradient,) = run.run(None, feeds)

    assert_close(gradient, golden()[f"{name}/x"])


@pytest.mark.parametrize("name", CASES)
def test_rule_loss_is_that_of_torch_in_every_graph(name: str) -> None:
    graphs, weights = graphs_of(name)
    feeds = {**graphs.layout.unpack(np.frombuffer(weights, "<f4")), **feeds_of(CASES[name])}
    rate = {"learning_rate": np.array(0.1, np.float32)}
    expected = float(golden()[f"{name}/loss"])

    (loss,) = session(graphs.loss, optimize=True).run(None, feeds)
    (trained,) = session(graphs.train, optimize=True).run(["loss"], {**feeds, **rate})
    total, count = session(graphs.evaluate, optimize=True).run(["loss_sum", "count"], feeds)

    assert count == sum(label >= 0 for label in CASES[name].labels)
    np.testing.assert_allclose([loss, trained, total / count], expected, rtol=1e-5)


def onnx_ad_gradients(graphs: TrainingGraphs, weights: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of the mean loss from an independent engine, over our loss graph."""
    names = [entry.name for entry in graphs.parameters]
    adjoint = onnx_ad.reverse(
        onnx.load_model_from_string(graphs.loss), inputs=names, outputs=["loss"], layout="onnx"
    ).SerializeToString()
    given = {**graphs.layout.unpack(np.frombuffer(weights, "<f4")), **feeds, "adj_loss": np.ones(1, np.float32)}
    found = session(adjoint, optimize=True).run([f"adj_{name}" for name in names], given)
    return {name: gradient[..., 0] for name, gradient in zip(names, found, strict=True)}


@pytest.mark.parametrize("name", CASES)
def test_rule_parameter_gradient_is_that_of_onnx_ad(name: str) -> None:
    graphs, weights = graphs_of(name)

    other = onnx_ad_gradients(graphs, weights, feeds_of(CASES[name]))

    for parameter, gradient in parameter_gradients(name, optimize=True).items():
        assert_close(gradient, other[parameter])


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as_written"])
def test_whole_mlp_gradient_is_that_of_torch_and_onnx_ad(*, optimize: bool) -> None:
    model, x, labels = mlp()
    graphs, weights = build_graphs(model, batch=10), split_weights(model).weights
    feeds = {"input": x, "labels": labels}

    gradient = measure_gradient(graphs.train, graphs.layout, np.frombuffer(weights, "<f4"), feeds, optimize=optimize)

    other = onnx_ad_gradients(graphs, weights, feeds)
    for reference in (
        np.concatenate([golden()[f"mlp/{entry.name}"].reshape(-1) for entry in graphs.parameters]),
        np.concatenate([other[entry.name].reshape(-1) for entry in graphs.parameters]),
    ):
        assert np.linalg.norm(gradient - reference) <= NETWORK_TOLERANCE * np.linalg.norm(reference)


def test_every_rule_has_a_case() -> None:
    used = {node.op_type for case in OPERATOR_CASES for node in case.nodes}

    assert set(RULES) <= used
