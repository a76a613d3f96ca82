"""Coverage: every node named with its rule or the lack of it, the builder's own verdict, and costs that add up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.fakes.models import classifier, he_mlp

from holdfast.author.coverage import measure_coverage
from holdfast.author.pack import TrainingPlan
from holdfast.cli.main import main
from holdfast.errors import AutodiffError

WEIGHTS = {"first": np.ones((4, 5), np.float32), "second": np.ones((5, 3), np.float32)}


def with_unknown_operator() -> bytes:
    """A Det-like operator without a gradient between the two layers."""
    nodes = [
        helper.make_node("MatMul", ["input", "first"], ["a"], name="body"),
        helper.make_node("Hardmax", ["a"], ["b"], name="strange", axis=-1),
        helper.make_node("MatMul", ["b", "second"], ["logits"], name="head"),
    ]
    return classifier(nodes, WEIGHTS, inputs={"input": ("batch", 4)})


def test_a_perceptron_is_trainable_and_its_cost_is_that_of_its_layers() -> None:
    found = measure_coverage(he_mlp([784, 200, 200, 10]), TrainingPlan(batch=10))

    assert found.is_trainable
    assert all(node.has_rule and node.is_passed and not node.reason for node in found.nodes)
    assert found.cost is not None
    layers = 784 * 200 + 200 * 200 + 200 * 10
    assert found.cost.forward_multiply_adds == 10 * layers
    assert found.cost.step_multiply_adds == 3 * 10 * layers
    assert found.cost.parameters == found.cost.trainable_parameters == 199_210
    assert found.cost.activation_bytes >= 4 * 10 * (4 * 200 + 10)


@pytest.mark.parametrize(
    ("operator", "shapes", "attributes", "expected"),
    [
        ("LSTM", {"w": (1, 20, 3), "r": (1, 20, 5)}, {"hidden_size": 5}, 7 * (20 * 3 + 20 * 5)),
        ("RNN", {"w": (1, 5, 3), "r": (1, 5, 5)}, {"hidden_size": 5}, 7 * (5 * 3 + 5 * 5)),
        ("Einsum", {"w": (3, 5)}, {"equation": "sbi,ij->bsj"}, 7 * 3 * 5),
    ],
)
def test_the_cost_of_what_multiplies_in_other_ways_is_counted(
    operator: str, shapes: dict[str, tuple[int, ...]], attributes: dict[str, object], expected: int
) -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node(operator, ["steps", *shapes], ["made"], name="it", **attributes),
        helper.make_node("Reshape", ["made", "rows"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["logits"]),
    ]
    weights = {name: np.ones(shape, np.float32) for name, shape in {**shapes, "head": (35, 3)}.items()}
    model = classifier(nodes, {**weights, "rows": np.array([-1, 35])}, inputs={"x": ("batch", 7, 3)})

    found = measure_coverage(model, TrainingPlan(batch=10))

    (node,) = [each for each in found.nodes if each.name == "it"]
    assert node.multiply_adds == 10 * expected


def test_an_operator_without_a_rule_is_named_where_it_is_in_the_way() -> None:
    found = measure_coverage(with_unknown_operator(), TrainingPlan())

    (strange,) = [node for node in found.nodes if node.reason]
    assert not found.is_trainable
    assert "strange" in found.refusal
    assert (strange.name, strange.operator, strange.is_passed) == ("strange", "Hardmax", True)


def test_the_same_operator_is_no_hindrance_in_a_frozen_body() -> None:
    found = measure_coverage(with_unknown_operator(), TrainingPlan(trainable=("second",)))

    (strange,) = [node for node in found.nodes if node.reason]
    assert found.is_trainable
    assert "none is needed" in strange.reason
    assert found.cost is not None
    assert found.cost.trainable_parameters == 15


def test_an_optimizer_with_state_needs_more_memory() -> None:
    sgd, adam = (measure_coverage(he_mlp([4, 8, 3]), TrainingPlan(optimizer=name)).cost for name in ("sgd", "adam"))

    assert sgd is not None
    assert adam is not None
    assert adam.memory_bytes is not None
    assert sgd.memory_bytes is not None
    assert adam.memory_bytes >= sgd.memory_bytes + 4 * 2 * (2 * sgd.parameters + 1)


def test_a_model_that_cannot_be_trained_has_no_estimate_of_memory() -> None:
    cost = measure_coverage(with_unknown_operator(), TrainingPlan()).cost

    assert cost is not None
    assert cost.memory_bytes is None
    assert cost.activation_bytes > 0


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (TrainingPlan(trainable=("nothing.*",)), "fits no parameter"),
        (TrainingPlan(optimizer="magic"), "unknown optimizer"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_the_reason(plan: TrainingPlan, message: str) -> None:
    assert message in measure_coverage(he_mlp([4, 8, 3]), plan).refusal


def test_bytes_that_are_no_model_are_refused() -> None:
    with pytest.raises(AutodiffError):
        measure_coverage(b"not a model", TrainingPlan())


@pytest.mark.parametrize(("more", "code"), [((), 1), (("--trainable", "second"), 0)])
def test_command_answers_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], code: int
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(with_unknown_operator())

    assert main(["bundle", "coverage", str(path), "--json", *more]) == code
    facts = json.loads(capsys.readouterr().out)
    assert main(["bundle", "coverage", str(path), *more]) == code

    assert facts["trainable"] is (code == 0)
    assert [node["name"] for node in facts["nodes"]] == ["body", "strange", "head"]
    shown = capsys.readouterr().out
    assert "Hardmax" in shown
    assert ("NOT trainable" in shown) is (code == 1)
