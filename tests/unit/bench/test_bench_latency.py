"""The figures say what the calls did, and nothing that they cannot say."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.clock import FakeClock

from holdfast.bench.latency import Latencies, RunQueue, measure, noise, report, summary


def latencies(*pairs: tuple[int, int]) -> Latencies:
    made = Latencies()
    for latency_ns, queued_ns in pairs:
        made.add(latency_ns, queued_ns)
    return made


@pytest.mark.parametrize(
    ("calls", "missing"),
    [
        (0, {"min", "p50", "p90", "p99", "max", "mean"}),
        (9, {"p50", "p90", "p99"}),
        (49, {"p90", "p99"}),
        (499, {"p99"}),
        (500, set()),
    ],
)
def test_percentile_that_the_calls_cannot_support_is_null(calls: int, missing: set[str]) -> None:
    got = summary(list(range(calls)))

    assert got["n"] == calls
    assert {name for name, value in got.items() if value is None} == missing


@settings(max_examples=20)
@given(st.lists(st.integers(0, 10**12), min_size=500, max_size=700))
def test_percentiles_are_calls_that_happened_and_ordered(values: list[int]) -> None:
    got = summary(values)

    order = [got[name] for name in ("min", "p50", "p90", "p99", "max")]
    assert order == sorted(order, key=lambda value: value or 0)
    assert set(order) <= set(values)
    share_below = np.mean(np.array(values) <= (got["p99"] or 0))
    assert share_below >= 0.99


def test_clean_figures_leave_out_calls_that_waited_for_a_core() -> None:
    got = report(latencies(*[(10, 0)] * 20, *[(1_000, 5)] * 20))

    assert isinstance(got["raw"], dict)
    assert isinstance(got["clean"], dict)
    assert (got["raw"]["max"], got["clean"]["max"], got["clean"]["n"]) == (1_000, 10, 20)


def test_clean_figures_are_null_with_a_reason() -> None:
    untagged = latencies((10, 0))
    untagged.tagged = False

    assert report(untagged)["clean"] is None
    assert "schedstat" in str(report(untagged)["clean_reason"])
    assert report(latencies((10, 0)), clean_reason="two threads")["clean_reason"] == "two threads"


@pytest.mark.parametrize(
    ("queued_ns", "verdict"), [(0, "quiet"), (9, "quiet"), (10, "noisy"), (200, "noisy"), (201, "unusable")]
)
def test_verdict_follows_the_share_of_time_in_the_run_queue(queued_ns: int, verdict: str) -> None:
    assert noise(latencies((500, queued_ns), (500, 0)))["verdict"] == verdict


def test_verdict_is_unknown_where_the_kernel_does_not_tell() -> None:
    untagged = latencies((10, 0))
    untagged.tagged = False

    assert noise(untagged) == {"run_queue_pct": None, "dirty_pct": None, "verdict": "unknown"}


def test_measure_calls_at_least_once_and_until_the_time_is_over() -> None:
    clock = FakeClock()
    into = Latencies()

    measure(lambda: clock.advance(0.25), 1.0, clock, into)
    measure(lambda: clock.advance(0.25), 0.0, clock, into)

    assert into.latency_ns == [250_000_000] * 5


def test_run_queue_counts_up_while_threads_compete() -> None:
    queue = RunQueue()
    if not queue.is_available:
        pytest.skip("this kernel has no schedstat")
    done = threading.Event()

    def spin() -> None:
        while not done.is_set():
            pass

    threads = [threading.Thread(target=spin) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = queue.waited_ns()
    count = 0
    while queue.waited_ns() == before and count < 20_000_000:
        count += 1
    after = queue.waited_ns()
    done.set()
    for thread in threads:
        thread.join()
    queue.close()

    assert after > before
