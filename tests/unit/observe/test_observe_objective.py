"""The served p99 beside its objective: true figures only, judged over the last seconds, errors left out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.observe.objective import LOOKS, MAX_KEPT, MIN_REQUESTS, LatencyObjective, p99


@dataclass
class Event:
    latencies_s: tuple[float, ...]
    outcome: str = "ok"


def told(objective: LatencyObjective, *latencies_s: float, outcome: str = "ok") -> bool:
    half = len(latencies_s) // 2
    for latency_s in latencies_s[:half]:
        objective.on_response(Event((latency_s,), outcome))
    objective.on_response(Event(latencies_s[half:], outcome))  # answered together
    return objective.look()


def test_slow_answers_miss_the_objective_and_quick_ones_keep_it() -> None:
    objective = LatencyObjective(0.010)

    assert not objective.is_missed
    assert not told(objective, *[0.009] * 20)
    assert told(objective, *[0.011] * 20)
    assert objective.is_missed


def test_one_slow_answer_of_200_does_not_miss_a_p99_and_three_do() -> None:
    assert not told(LatencyObjective(0.010), 1.0, *[0.001] * 199)
    assert told(LatencyObjective(0.010), 1.0, 1.0, 1.0, *[0.001] * 197)


def test_handful_of_requests_proves_nothing() -> None:
    objective = LatencyObjective(0.010)

    assert not told(objective, *[1.0] * (MIN_REQUESTS - 1))
    assert told(objective, 1.0)


def test_what_was_slow_is_forgotten_after_a_window() -> None:
    objective = LatencyObjective(0.010)
    told(objective, *[1.0] * 20)

    looks = [objective.look() for _ in range(LOOKS)]

    assert looks == [True] * (LOOKS - 1) + [False]


def test_errors_are_no_latencies() -> None:
    assert not told(LatencyObjective(0.010), *[5.0] * 50, outcome="HF-REQUEST-005")


def test_memory_is_bounded_and_the_latest_count() -> None:
    objective = LatencyObjective(0.010)

    assert not told(objective, *[1.0] * MAX_KEPT, *[0.001] * MAX_KEPT)


@given(st.lists(st.floats(0.0, 100.0), max_size=300))
def test_p99_is_the_one_of_numpy(latencies_s: list[float]) -> None:
    got = p99(latencies_s)

    if len(latencies_s) < MIN_REQUESTS:
        assert got is None
    else:
        assert got == pytest.approx(np.percentile(latencies_s, 99, method="inverted_cdf"))
