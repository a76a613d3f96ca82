"""What it costs to remember a latency: one value into the histogram, many at once, and a merge of two devices."""

from __future__ import annotations

from itertools import cycle

import numpy as np
from benchmarks.harness import Figures, Options, Outcome, compare, timed

from holdfast.sketch.histogram import ExponentialHistogram

VALUES = 10_000
CALLS = 200


def run(options: Options) -> list[Outcome]:
    values = np.random.default_rng(0).lognormal(-6.0, 1.0, VALUES)
    one_by_one, plain = ExponentialHistogram(), [0.0]
    drawn, count = cycle(values.tolist()), options.count(VALUES)

    def keep() -> Figures:
        plain.clear()
        return _us(timed(lambda: plain.append(next(drawn)), count))

    def add() -> Figures:
        return _us(timed(lambda: one_by_one.add(next(drawn)), count))

    def sort() -> Figures:
        return _us(timed(lambda: np.quantile(values, (0.5, 0.99)), options.count(CALLS)))

    def add_many() -> Figures:
        return _us(timed(lambda: ExponentialHistogram().add_many(values), options.count(CALLS)))

    left, right = ExponentialHistogram(), ExponentialHistogram()
    left.add_many(values)
    right.add_many(values * 3)

    def merge() -> Figures:
        return _us(timed(lambda: left.merge(right), options.count(CALLS)))

    rounds = options.rounds
    return [
        *compare("sketch/add", ("append to a list", keep), ("add one value", add), rounds),
        *compare("sketch/add-many", (f"numpy quantile of {VALUES}", sort), (f"add {VALUES} values", add_many), rounds),
        *compare("sketch/merge", (f"numpy quantile of {VALUES}", sort), ("merge two histograms", merge), rounds),
    ]


def _us(figures: dict[str, float]) -> Figures:
    return {"p50_us": figures["p50_us"], "p99_us": figures["p99_us"]}
