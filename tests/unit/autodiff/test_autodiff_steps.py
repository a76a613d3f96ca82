"""Losses, optimizers, proximal term, clipping, statistics and Dropout against torch float64 (golden vectors)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.fakes.models import classifier, he_mlp
from tests.fakes.step_runs import initial_state, run_step, session, step_gradients, trainable_of
from tests.vectors.autodiff import steps
from tests.vectors.autodiff.networks import NETWORKS

from holdfast.autodiff.build import StepOptions, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.registry import LOSSES, OPTIMIZERS
from holdfast.autodiff.selfcheck import check_gradients
from holdfast.errors import AutodiffError

GOLDEN = Path(__file__).parents[2] / "vectors" / "autodiff" / "torch_float64_steps.npz"
TOLERANCE = 1e-5  # relative to the largest element of the reference
ROUNDING = steps.STEPS * 2.0**-24  # each step rounds parameters below 1 to float32; a wrong update is off by 1e-3


@cache
def golden(prefix: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN, allow_pickle=False) as archive:
        return {name.removeprefix(prefix): archive[name] for name in archive.files if name.startswith(prefix)}


def assert_close(got: np.ndarray, expected: np.ndarray) -> None:
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize("case", steps.LOSSES, ids=lambda case: case.name)
def test_loss_and_gradient_are_those_of_torch_and_padding_changes_nothing(case: steps.LossCase) -> None:
    model = steps.model()
    graphs, weights = build_graphs(model, batch=steps.BATCH, loss=case.spec), split_weights(model).weights
    x, labels = steps.batches(of_classes=case.of_classes)[0]
    expected = golden(f"loss/{case.name}/")

    gradients, _, loss = step_gradients(graphs, weights, {"x": x, "labels": labels})

    assert loss == pytest.approx(float(expected.pop("loss")), rel=TOLERANCE)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])
    assert graphs.labels.shape == labels.shape
    assert graphs.labels.is_float is not case.of_classes


@pytest.mark.parametrize("case", steps.LOSSES, ids=lambda case: case.name)
def test_evaluation_counts_labels_and_sums_the_loss(case: steps.LossCase) -> None:
    model = steps.model()
    graphs, weights = build_graphs(model, batch=steps.BATCH, loss=case.spec), split_weights(model).weights
    x, labels = steps.batches(of_classes=case.of_classes)[0]
    feeds = {**trainable_of(graphs, weights), "x": x, "labels": labels}

    total, correct, count = session(graphs.evaluate, weights).run(["loss_sum", "correct", "count"], feeds)
    (mean,) = session(graphs.loss, weights).run(["loss"], feeds)

    (logits,) = session(model, b"").run(None, {"x": x})
    ignored = case.settings.get("ignore_index", -1)
    if case.of_classes:
        known = (labels >= 0) & (labels != ignored)
        right = (logits.argmax(axis=1) == labels) & known
    else:
        known = ~np.isnan(labels)
        right = ((logits > 0) == (labels > 0.5)) & known & (case.name == "binary")
    assert (int(correct), int(count)) == (right.sum(), known.sum())
    if "weight" not in case.settings:
        assert total / count == pytest.approx(float(mean), rel=1e-6)


@pytest.mark.parametrize("spec", ["softmax_cross_entropy:class_weights=1/2/3/4", "mse", "binary_cross_entropy"])
def test_a_batch_of_padding_only_changes_nothing_whatever_the_loss(spec: str) -> None:
    model = steps.model()
    graphs, weights = build_graphs(model, batch=2, loss=spec), split_weights(model).weights
    labels = np.full(graphs.labels.shape, np.nan, np.float32) if graphs.labels.is_float else np.array([-1, -1])

    gradients, _, loss = step_gradients(graphs, weights, {"x": np.ones((2, 5), np.float32), "labels": labels})

    assert loss == 0
    assert all(not gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("case", steps.OPTIMIZERS, ids=lambda case: case.name)
def test_optimizer_ends_where_that_of_torch_ends(case: steps.OptimizerCase) -> None:
    model = steps.model()
    options = StepOptions(proximal=case.proximal, clip=case.clip)
    graphs = build_graphs(model, batch=steps.BATCH, optimizer=case.spec, options=options)
    weights = split_weights(model).weights
    run, state = session(graphs.train, weights), initial_state(graphs, weights)
    fixed = {"learning_rate": np.array(steps.LEARNING_RATE, np.float32)}
    if case.proximal:
        fixed.update({f"{name}.anchor": value for name, value in steps.anchors().items()})
        fixed["proximal_mu"] = np.array(steps.PROXIMAL_MU, np.float32)
    if case.clip:
        fixed["clip_norm"] = np.array(steps.CLIP_NORM, np.float32)

    for x, labels in steps.batches(of_classes=True):
        state, _ = run_step(run, state, {**fixed, "x": x, "labels": labels})

    expected = golden(f"optimizer/{case.name}/")
    before = initial_state(graphs, weights)
    for name, value in expected.items():  # relative to how far it moved: the start alone is nearly right
        moved = value - before[name]
        allowed = 2 * TOLERANCE * np.abs(moved).max() + ROUNDING
        assert np.abs(state[name].astype(np.float64) - value).max() <= allowed


def test_every_optimizer_and_loss_has_a_case() -> None:
    assert {case.spec.partition(":")[0] for case in steps.OPTIMIZERS} == set(OPTIMIZERS)
    assert {case.spec.partition(":")[0] for case in steps.LOSSES} == set(LOSSES)


def test_state_keeps_the_names_of_the_contract() -> None:
    graphs = build_graphs(he_mlp([3, 4]), batch=2, optimizer="adam")

    assert [(each.name, each.shape) for each in graphs.state] == [
        ("layer0.weight.m", (4, 3)),
        ("layer0.weight.v", (4, 3)),
        ("layer0.bias.m", (4,)),
        ("layer0.bias.v", (4,)),
        ("optimizer.step", ()),
    ]


def test_dropout_is_that_of_torch_with_the_same_numbers_and_off_unless_asked_for() -> None:
    model = steps.model(dropout=True)
    weights = split_weights(model).weights
    graphs = build_graphs(model, batch=steps.BATCH, options=StepOptions(dropout=True))
    x, labels = steps.batches(of_classes=True)[0]
    expected = golden("dropout/")

    gradients, _, loss = step_gradients(graphs, weights, {"x": x, "labels": labels, "d.uniform": steps.uniform()})

    assert [(noise.name, noise.shape) for noise in graphs.noise] == [("d.uniform", (steps.BATCH, 7))]
    assert loss == pytest.approx(float(expected.pop("loss")), rel=TOLERANCE)
    for name, gradient in gradients.items():
        assert_close(gradient, expected[name])
    assert build_graphs(model, batch=2).noise == ()


@pytest.mark.parametrize("mode", ["averaged", "local"])
def test_statistics_of_the_batch_leave_out_padding_and_move_as_in_torch(mode: str) -> None:
    net = NETWORKS["mobile_net_averaged"]
    graphs = build_graphs(net.model, batch=8, options=StepOptions(batch_norm=mode))
    weights = split_weights(net.model).weights
    feeds = {"x": net.x, "labels": net.labels}

    _, new, _ = step_gradients(graphs, weights, feeds)
    _, untouched, _ = step_gradients(graphs, weights, {**feeds, "labels": np.full(8, -1)})

    expected = {n: v for n, v in golden("network/mobile_net_averaged/").items() if n.endswith(".new")}
    assert len(expected) == 16
    for name, value in expected.items():
        assert_close(new[name.removesuffix(".new")], value)
    for name, value in initial_state(graphs, weights).items():
        np.testing.assert_array_equal(untouched[name], value)
    learns = {entry.name for entry in graphs.parameters}
    statistics = {name.removesuffix(".new") for name in expected}
    assert statistics <= learns if mode == "averaged" else statistics.isdisjoint(learns)
    assert {each.name for each in graphs.state} == (statistics if mode == "local" else set())


def test_statistics_of_a_part_that_does_not_learn_stay_frozen() -> None:
    nodes = [
        helper.make_node("BatchNormalization", ["x", "s", "b", "mean", "var"], ["n"]),
        helper.make_node("MatMul", ["n", "w"], ["logits"]),
    ]
    ones = np.ones(4, np.float32)
    weights = {"s": ones, "b": ones, "mean": 2 * ones, "var": 3 * ones, "w": np.ones((4, 3), np.float32)}
    model = classifier(nodes, weights, inputs={"x": ("batch", 4)})

    graphs = build_graphs(model, batch=2, trainable=["w"], options=StepOptions(batch_norm="averaged"))

    assert [entry.name for entry in graphs.parameters] == ["w"]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_selfcheck_reads_the_gradient_off_every_optimizer(optimizer: str) -> None:
    model = steps.model(dropout=True)
    options = StepOptions(dropout=True, proximal=True, clip=True)
    graphs = build_graphs(model, batch=3, optimizer=optimizer, loss="huber", options=options)

    check = check_gradients(graphs, split_weights(model).weights)

    assert max(check.directional_error, check.reference_error) < 1e-5


@pytest.mark.parametrize("mode", ["averaged", "local"])
def test_selfcheck_passes_statistics_of_the_batch(mode: str) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "s", "b", "mean", "var"], ["n"]),
        helper.make_node("Gemm", ["n", "v"], ["logits"]),
    ]
    rng = np.random.default_rng(0)
    shapes = {"w": (5, 4), "s": (4,), "b": (4,), "mean": (4,), "var": (4,), "v": (4, 3)}
    weights = {name: np.abs(rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    model = classifier(nodes, weights, inputs={"x": ("batch", 5)})

    graphs = build_graphs(model, batch=6, optimizer="adamw", options=StepOptions(batch_norm=mode))

    assert check_gradients(graphs, split_weights(model).weights).directional_error < 1e-5


@pytest.mark.parametrize(
    ("defect", "arguments", "message"),
    [
        ("unknown_setting", {"optimizer": "adam:gamma=1"}, "unknown setting 'gamma' of adam; it has beta1"),
        ("no_number", {"loss": "huber:delta=much"}, "huber:delta must be a number, got 'much'"),
        ("setting_out_of_range", {"loss": "huber:delta=0"}, "delta must be a positive number"),
        ("momentum_of_one", {"optimizer": "nesterov:momentum=1"}, "momentum must be at least 0 and below 1"),
        ("negative_decay", {"optimizer": "sgd:weight_decay=-1"}, "weight_decay must be 0 or more"),
        ("beta_of_one", {"optimizer": "adam:beta2=1"}, "beta2 must be above 0 and below 1"),
        ("smoothing_of_one", {"loss": "softmax_cross_entropy:label_smoothing=1"}, "label_smoothing must be"),
        ("weights_for_other_classes", {"loss": "softmax_cross_entropy:class_weights=1/2"}, "2 class_weights for 4"),
        ("negative_weight", {"loss": "softmax_cross_entropy:class_weights=1/-2/1/1"}, "not negative"),
        ("unknown_mode", {"options": StepOptions(batch_norm="shared")}, "frozen, local, averaged; got 'shared'"),
    ],
)
def test_build_refuses_settings(defect: str, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(AutodiffError, match=message):
        build_graphs(steps.model(), batch=2, **arguments)  # type: ignore[arg-type]
