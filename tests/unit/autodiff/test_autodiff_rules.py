"""Every gradient rule against torch float64 (golden vectors) and onnx-ad (live), at both optimisation levels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ad
import onnxruntime
import pytest
from _pytest.mark import ParameterSet
from tests.vectors.autodiff.cases import OPERATOR_CASES, Case, mlp

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.registry import RULES
from holdfast.autodiff.selfcheck import measure_gradient

GOLDEN = Path(__file__).parents[2] / "vectors" / "autodiff" / "torch_float64.npz"
RULE_TOLERANCE = 1e-5  # relative to the largest element of the reference
NETWORK_TOLERANCE = 5e-6  # relative 2-norm over the whole gradient
PROBE_RATE = np.float32(2**40)  # so large that p - p.new holds every digit of the gradient
CONSTANT_BY_NATURE = {"mean", "var", "cw"}  # running statistics and class weights: no rule gives them a gradient
CASES = {case.name: case for case in OPERATOR_CASES}
# what onnx-ad 0.3 refuses, or (the last) gets wrong: its gradient there is neither torch's nor the finite difference
NOT_IN_ONNX_AD = (
    *("conv_groups", "conv_depthwise", "conv_same", "conv_transpose", "slice_strided", "slice_reversed"),
    *("slice_two_axes", "pad_reflect", "pad_edge", "pad_wrap", "pad_negative", "pow_integer", "average_pool_ceil"),
    *("average_pool_same", "max_pool_same", "batch_norm", "cross_entropy_weighted", "lengths"),
    "gru_linear_without_bias",
)


def one_per_operator() -> set[str]:
    """Enough of the cases that every rule is in one; the others are slow."""
    found: dict[str, str] = {}
    for case in OPERATOR_CASES:
        for node in case.nodes:
            if all(other.op_type != node.op_type for name in found.values() for other in CASES[name].nodes):
                found[node.op_type] = case.name
    return set(found.values())


def sampled(names: Iterable[str]) -> list[ParameterSet]:
    """The cases as parameters, marked slow unless they are needed for every rule to have one."""
    kept = one_per_operator()
    return [pytest.param(name, marks=() if name in kept else pytest.mark.slow) for name in names]


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


def session(graph: bytes, weights: bytes, *, optimize: bool) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_external_initializers_from_files_in_memory(["weights.bin"], [weights], [len(weights)])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def trainable_of(graphs: TrainingGraphs, weights: bytes) -> dict[str, np.ndarray]:
    tensors = graphs.layout.unpack(np.frombuffer(weights, "<f4"))
    return {entry.name: tensors[entry.name] for entry in graphs.parameters}


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    largest = np.abs(expected).max()
    assert np.abs(got - expected).max() <= RULE_TOLERANCE * largest


@cache
def step_of(name: str, *, optimize: bool) -> tuple[dict[str, np.ndarray], float]:
    """The gradient by parameter that one step applies, and the loss it tells."""
    graphs, weights = graphs_of(name)
    before = trainable_of(graphs, weights)
    feeds = {**before, **feeds_of(CASES[name]), "learning_rate": np.array(PROBE_RATE)}
    outputs = [*(f"{key}.new" for key in before), "loss"]
    *after, loss = session(graphs.train, weights, optimize=optimize).run(outputs, feeds)
    pairs = zip(before.items(), after, strict=True)
    return {key: (old.astype(np.float64) - new) / PROBE_RATE for (key, old), new in pairs}, float(loss)


@pytest.mark.parametrize("name", CASES)
def test_rule_gradients_and_loss_are_those_of_torch(name: str) -> None:
    assert_as_torch(name, optimize=True)


@pytest.mark.parametrize("name", sampled(CASES))
def test_rule_gradients_and_loss_of_the_graph_as_written_are_those_of_torch(name: str) -> None:
    assert_as_torch(name, optimize=False)


def assert_as_torch(name: str, *, optimize: bool) -> None:
    graphs, weights = graphs_of(name)
    assert graphs.input_gradient is not None

    found, loss = step_of(name, optimize=optimize)
    run = session(graphs.input_gradient, weights, optimize=optimize)
    (by_input,) = run.run(None, {**trainable_of(graphs, weights), **feeds_of(CASES[name])})

    assert set(found) == set(CASES[name].weights) - CONSTANT_BY_NATURE
    for parameter, gradient in found.items():
        assert_close(gradient, golden()[f"{name}/{parameter}"])
    assert_close(by_input, golden()[f"{name}/x"])
    assert loss == pytest.approx(float(golden()[f"{name}/loss"]), rel=1e-5)


@pytest.mark.parametrize("name", sampled(CASES))
def test_rule_evaluation_and_loss_graphs_say_what_torch_says(name: str) -> None:
    """They run the served operators; the training step runs what the rules wrote in their place."""
    graphs, weights = graphs_of(name)
    feeds = {**trainable_of(graphs, weights), **feeds_of(CASES[name])}
    expected = float(golden()[f"{name}/loss"])

    (loss,) = session(graphs.loss, weights, optimize=False).run(None, feeds)
    total, count = session(graphs.evaluate, weights, optimize=False).run(["loss_sum", "count"], feeds)

    assert count == sum(label >= 0 for label in CASES[name].labels)
    np.testing.assert_allclose([loss, total / count], expected, rtol=1e-5)


def onnx_ad_gradients(graphs: TrainingGraphs, weights: bytes, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradients of the mean loss from an independent engine, over our loss graph."""
    given = trainable_of(graphs, weights)
    adjoint = onnx_ad.reverse(
        onnx.load_model_from_string(graphs.loss), inputs=list(given), outputs=["loss"], layout="onnx"
    ).SerializeToString()
    run = session(adjoint, weights, optimize=False)
    found = run.run([f"adj_{name}" for name in given], {**given, **feeds, "adj_loss": np.ones(1, np.float32)})
    return {name: gradient[..., 0] for name, gradient in zip(given, found, strict=True)}


@pytest.mark.parametrize("name", sampled(name for name in CASES if not name.startswith(NOT_IN_ONNX_AD)))
def test_rule_parameter_gradient_is_that_of_onnx_ad(name: str) -> None:
    graphs, weights = graphs_of(name)

    other = onnx_ad_gradients(graphs, weights, feeds_of(CASES[name]))

    for parameter, gradient in step_of(name, optimize=True)[0].items():
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
