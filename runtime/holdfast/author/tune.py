"""Tries the ways in which a training step can be written, and keeps those that are faster on this machine.

The rules choose by shape and are right on most machines; a measurement is right on the one that it was made on. So this
is for authors whose devices are like their own machine. Its result depends on time: packing the same model twice may
give other bytes. Every candidate computes the same step, and pack checks its gradients like any other.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from holdfast.author.pack import TrainingPlan, build_planned
from holdfast.autodiff.build import TrainingGraphs
from holdfast.autodiff.externalise import split_weights
from holdfast.clock import Clock, SystemClock
from holdfast.learn.data import Array
from holdfast.learn.step_session import LearningSession

PAIRS, WARM = 7, 2  # alternating pairs per candidate: enough for a median that another program does not move
WORTH = 0.97  # a step that is not 3 % faster may as well be noise
_TRAIN = "train"


@dataclass(frozen=True, slots=True)
class Trial:
    """One way that was tried: the median of its time over that of what was best so far."""

    where: str
    way: str
    ratio: float
    kept: bool


@dataclass(frozen=True, slots=True)
class Tuning:
    """The plan with what was measured, every trial, and whether time was up before all were made."""

    plan: TrainingPlan
    trials: tuple[Trial, ...]
    stopped_early: bool

    def to_fields(self) -> dict[str, object]:
        """For a report: what was tried, in which share of the time the step ran then, and what was kept."""
        trials = [{"where": t.where, "way": t.way, "ratio": round(t.ratio, 3), "kept": t.kept} for t in self.trials]
        return {"trials": trials, "kept": dict(self.plan.step.lowerings), "stopped_early": self.stopped_early}


def tune(model_bytes: bytes, plan: TrainingPlan, *, limit_s: float, clock: Clock | None = None) -> Tuning:
    """Try one other way after the other, each against the best so far.

    Args:
        model_bytes: as for `pack`.
        limit_s: when to stop; the trial that runs then is finished.

    Raises: AutodiffError: no training graphs can be built.
    """
    clock = clock or SystemClock()
    end = clock.monotonic_s() + limit_s
    chosen = dict(plan.step.lowerings)
    graphs = build_planned(model_bytes, plan)
    weights = split_weights(model_bytes, layout=graphs.layout).weights
    best = _stepper(graphs, weights)
    trials: list[Trial] = []
    for choice in graphs.choices:
        for way in choice.ways:
            if way == choice.taken:
                continue
            if clock.monotonic_s() >= end:
                return Tuning(_with(plan, chosen), tuple(trials), stopped_early=True)
            other = _stepper(build_planned(model_bytes, _with(plan, {**chosen, choice.where: way})), weights)
            ratio = _ratio(best, other, clock)
            trials.append(Trial(choice.where, way, ratio, ratio < WORTH))
            if ratio < WORTH:
                chosen[choice.where], best = way, other
    return Tuning(_with(plan, chosen), tuple(trials), stopped_early=False)


def _with(plan: TrainingPlan, chosen: dict[str, str]) -> TrainingPlan:
    return replace(plan, step=replace(plan.step, lowerings=tuple(sorted(chosen.items()))))


def _stepper(graphs: TrainingGraphs, weights: bytes) -> Callable[[], object]:
    """One training step on made-up data, as a device runs it."""
    session = LearningSession(graphs.train, _TRAIN, (), weights=weights, threads=1)
    rng = np.random.default_rng(0)
    known = graphs.layout.unpack(np.frombuffer(weights, "<f4"))
    feeds: dict[str, Array] = {}
    for name in session.inputs:
        zeros = session.zeros_of(name)
        drawn = rng.random(zeros.shape, dtype=np.float32) if zeros.dtype == np.float32 else zeros
        feeds[name] = known.get(name, drawn)
    outputs = session.outputs
    return lambda: session.run(outputs, feeds)


def _ratio(best: Callable[[], object], other: Callable[[], object], clock: Clock) -> float:
    for step in (best, other) * WARM:
        step()
    pairs = [(_seconds(best, clock), _seconds(other, clock)) for _ in range(PAIRS)]
    return statistics.median(b / max(a, 1e-9) for a, b in pairs)


def _seconds(step: Callable[[], object], clock: Clock) -> float:
    started = clock.monotonic_s()
    step()
    return clock.monotonic_s() - started
