"""A step graph that PyTorch made: for an operator without a rule here, brought along, checked, and as good as ours."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from tests.corpus.torch_process import in_torch_environment
from tests.fakes.models import he_mlp
from tests.fakes.trainable_bundles import numbers, packed_with

from holdfast.author.contract import step_contract
from holdfast.author.pack import TrainingPlan
from holdfast.autodiff.build import build_graphs
from holdfast.errors import AutodiffError
from holdfast.learn.data import LocalDataset
from holdfast.learn.trainable import open_trainable
from holdfast.learn.training import TrainSettings
from holdfast.update.layout import Floats

SETTINGS = TrainSettings(epochs=5, batch=10, learning_rate=0.1, seed=1)


def network(*, has_rules: bool) -> bytes:
    """A 4-8-2 perceptron whose hidden layer is divided by its length: by one operator, or by two that have rules."""
    model = onnx.load_from_string(he_mlp([4, 8, 2]))
    (relu,) = [node for node in model.graph.node if node.op_type == "Relu"]
    before, after, place = relu.input[0], relu.output[0], list(model.graph.node).index(relu)
    if has_rules:
        axes = onnx.numpy_helper.from_array(np.array([1], np.int64), "axes")
        model.graph.initializer.append(axes)
        nodes = [
            helper.make_node("ReduceL2", [before, "axes"], ["length"], keepdims=1),
            helper.make_node("Div", [before, "length"], [after]),
        ]
    else:
        nodes = [helper.make_node("LpNormalization", [before], [after], name="unit", axis=1, p=2)]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*rest[:place], *nodes, *rest[place + 1 :]])
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def made_by_torch(folder: Path, *arguments: str) -> bytes:
    contract = step_contract(network(has_rules=False), TrainingPlan(batch=10, loss="mse"))
    tables = {kind: [asdict(each) for each in getattr(contract, kind)] for kind in ("inputs", "outputs")}
    (folder / "contract.json").write_text(json.dumps(tables))  # as the command prints it
    files = [str(folder / "contract.json"), str(folder / "gradient.onnx")]
    run = in_torch_environment("tests.corpus.torch_step_graph", [*files, *arguments])
    assert run.returncode == 0, run.stderr[-3000:]
    return (folder / "gradient.onnx").read_bytes()


def delta_of(container: bytes) -> Floats:
    opened = open_trainable(container)
    arrays = numbers(33)  # a last batch of three, so that padding is in it
    dataset = LocalDataset.from_arrays({"input": arrays["x"], "y": arrays["y"]}, opened.contract)
    result = opened.trainer.train(opened.weights, dataset, SETTINGS)
    assert result.loss_after < result.loss_before
    return result.delta


@pytest.mark.slow
def test_a_gradient_of_torch_learns_what_our_rules_would(tmp_path: Path) -> None:
    with pytest.raises(AutodiffError, match="'unit' \\(LpNormalization\\)"):
        build_graphs(network(has_rules=False), batch=10, loss="mse")
    plan = TrainingPlan(batch=10, loss="mse", optimizer="momentum", step_graph=made_by_torch(tmp_path))

    theirs = delta_of(packed_with(plan, model=network(has_rules=False)))

    ours = delta_of(
        packed_with(TrainingPlan(batch=10, loss="mse", optimizer="momentum"), model=network(has_rules=True))
    )
    assert np.linalg.norm(ours) > 0.1
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-5 * np.linalg.norm(ours))


@pytest.mark.slow
def test_a_gradient_of_torch_that_forgets_a_path_is_refused(tmp_path: Path) -> None:
    plan = TrainingPlan(batch=10, loss="mse", step_graph=made_by_torch(tmp_path, "--detached"))

    with pytest.raises(AutodiffError, match="gradient"):
        packed_with(plan, model=network(has_rules=False))
