"""Whole networks against torch float64 (golden vectors) and, where it can, onnx-ad, at both optimisation levels."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ad
import pytest
from tests.fakes.step_runs import session, step_gradients, trainable_of
from tests.vectors.autodiff.networks import NETWORKS

from holdfast.autodiff.build import StepOptions, TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights

GOLDEN = Path(__file__).parents[2] / "vectors" / "autodiff" / "torch_float64_steps.npz"
TOLERANCE = 5e-6  # relative 2-norm over the whole gradient


@cache
def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        prefix = f"network/{name}/"
        return {key.removeprefix(prefix): archive[key] for key in archive.files if key.startswith(prefix)}


@cache
def graphs_of(name: str) -> tuple[TrainingGraphs, bytes]:
    net = NETWORKS[name]
    options = StepOptions(batch_norm=net.batch_norm)
    return build_graphs(net.model, batch=len(net.labels), options=options), split_weights(net.model).weights


@pytest.mark.parametrize("optimize", [True, False], ids=["optimized", "as_written"])
@pytest.mark.parametrize("name", NETWORKS)
def test_network_gradient_and_loss_are_those_of_torch(name: str, *, optimize: bool) -> None:
    graphs, weights = graphs_of(name)
    feeds = {"x": NETWORKS[name].x, "labels": NETWORKS[name].labels}

    gradients, _, loss = step_gradients(graphs, weights, feeds, optimize=optimize)

    expected = golden(name)
    learned = [entry.name for entry in graphs.parameters if entry.name not in graphs.statistics]
    assert set(learned) == {key for key in expected if not key.endswith(".new")} - {"loss"} - statistics_of(name)
    got = np.concatenate([gradients[key].reshape(-1) for key in learned])
    wanted = np.concatenate([expected[key].reshape(-1) for key in learned])
    assert np.linalg.norm(got - wanted) <= TOLERANCE * np.linalg.norm(wanted)
    assert loss == pytest.approx(float(expected["loss"]), rel=1e-5)


def statistics_of(name: str) -> set[str]:
    """Running means and variances: torch differentiates them too, no rule does."""
    nodes = onnx.load_model_from_string(NETWORKS[name].model).graph.node
    return {each for node in nodes if node.op_type == "BatchNormalization" for each in node.input[3:5]}


@pytest.mark.parametrize("name", ["cnn", "transformer", "vision_transformer", "lstm"])
def test_network_gradient_is_that_of_onnx_ad(name: str) -> None:
    graphs, weights = graphs_of(name)
    feeds = {"x": NETWORKS[name].x, "labels": NETWORKS[name].labels}
    given = trainable_of(graphs, weights)

    adjoint = onnx_ad.reverse(
        onnx.load_model_from_string(graphs.loss), inputs=list(given), outputs=["loss"], layout="onnx"
    ).SerializeToString()
    seeded = {**given, **feeds, "adj_loss": np.ones(1, np.float32)}
    found = session(adjoint, weights).run([f"adj_{key}" for key in given], seeded)

    gradients, _, _ = step_gradients(graphs, weights, feeds)
    other = np.concatenate([each[..., 0].reshape(-1) for each in found])
    got = np.concatenate([gradients[key].reshape(-1) for key in given])
    assert np.linalg.norm(got - other) <= TOLERANCE * np.linalg.norm(other)
