"""Tuning: every way to write a step computes the same step, and what was measured to be faster is what gets built."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.step_runs import step_gradients
from tests.vectors.autodiff.networks import NETWORKS

from holdfast.author.pack import TrainingPlan, build_planned
from holdfast.author.tune import tune
from holdfast.autodiff.build import StepOptions, TrainingGraphs
from holdfast.autodiff.externalise import split_weights

TOLERANCE = 5e-6  # relative 2-norm over the whole gradient


def plan_for(name: str, *lowerings: tuple[str, str]) -> TrainingPlan:
    net = NETWORKS[name]
    return TrainingPlan(batch=len(net.labels), step=StepOptions(batch_norm=net.batch_norm, lowerings=lowerings))


def gradient(name: str, graphs: TrainingGraphs) -> np.ndarray:
    net = NETWORKS[name]
    weights = split_weights(net.model).weights
    found, _, _ = step_gradients(graphs, weights, {"x": net.x, "labels": net.labels})
    return np.concatenate([found[key].reshape(-1) for key in sorted(found)])


@pytest.mark.parametrize("name", ["cnn", "mobile_net_frozen", "mobile_net_averaged"])
def test_every_other_way_to_write_a_step_gives_the_same_gradient(name: str) -> None:
    by_rule = build_planned(NETWORKS[name].model, plan_for(name))
    expected = gradient(name, by_rule)

    others = [(choice.where, way) for choice in by_rule.choices for way in choice.ways[1:]]

    assert others
    for other in others:
        graphs = build_planned(NETWORKS[name].model, plan_for(name, other))
        assert graphs.train != by_rule.train, other
        assert {choice.where: choice.taken for choice in graphs.choices}[other[0]] == other[1]
        error = np.linalg.norm(gradient(name, graphs) - expected)
        assert error <= TOLERANCE * np.linalg.norm(expected), other


def test_way_that_does_not_fit_the_node_is_left_alone() -> None:
    by_rule = build_planned(NETWORKS["cnn"].model, plan_for("cnn"))
    where = by_rule.choices[0].where

    graphs = build_planned(NETWORKS["cnn"].model, plan_for("cnn", (where, "by magic"), ("Conv 1x1: dW", "taps")))

    assert graphs.train == by_rule.train


class Stopwatch(FakeClock):
    """On it every second step takes a second: `tune` times a pair of steps, the best so far and then the other."""

    def __init__(self, *, other_is_faster: bool) -> None:
        super().__init__()
        self._other_is_faster = other_is_faster
        self._asked = 0

    def monotonic_s(self) -> float:
        # asked before the trials, before each trial, then at both ends of both steps of every pair
        place = (self._asked - 1) % 29
        self._asked += 1
        if self._asked > 1 and place > 0 and (place - 1) % 4 == (1 if self._other_is_faster else 3):
            self.advance(1.0)
        return super().monotonic_s()


@pytest.mark.parametrize("faster", [True, False])
def test_tuning_keeps_what_is_faster_and_leaves_the_rest(*, faster: bool) -> None:
    plan = plan_for("cnn")

    tuning = tune(NETWORKS["cnn"].model, plan, limit_s=1e6, clock=Stopwatch(other_is_faster=faster))

    by_rule = build_planned(NETWORKS["cnn"].model, plan)
    assert not tuning.stopped_early
    assert {trial.where for trial in tuning.trials} == {choice.where for choice in by_rule.choices}
    assert all(trial.kept is faster for trial in tuning.trials)
    assert bool(tuning.plan.step.lowerings) is faster
    graphs = build_planned(NETWORKS["cnn"].model, tuning.plan)
    assert (graphs.train != by_rule.train) is faster
    onnx.checker.check_model(onnx.load_model_from_string(graphs.train))
    assert tuning.to_fields()["kept"] == dict(tuning.plan.step.lowerings)


def test_tuning_stops_when_time_is_up() -> None:
    tuning = tune(NETWORKS["cnn"].model, plan_for("cnn"), limit_s=0.0, clock=FakeClock())

    assert tuning.stopped_early
    assert not tuning.trials
    assert tuning.plan == replace(plan_for("cnn"))
