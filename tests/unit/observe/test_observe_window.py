"""Operational windows count every answer once, from any thread, and keep nothing that a client made up."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import pytest
from tests.fakes.clock import FakeClock

from holdfast.observe.window import MAX_MODELS, Resources, WindowMeter, own_resources


@dataclass
class Event:
    model: str = "digits"
    version: str = "1"
    latencies_s: tuple[float, ...] = (0.01,)
    outcome: str = "ok"


def test_a_window_counts_by_model_version_and_outcome() -> None:
    clock = FakeClock()
    meter = WindowMeter(clock, digest_of=lambda model, version: f"{model}-{version}", bytes_out=lambda: {"report": 5})
    start = clock.utc_ns()
    for event in (Event(), Event(outcome="HF-REQUEST-003"), Event(version="2", latencies_s=(2.0,))):
        meter.on_response(event)
    clock.advance(60)

    window = meter.close()

    assert (window.start_utc_ns, window.end_utc_ns) == (start, clock.utc_ns())
    assert [(m.version, m.outcomes, m.bundle_digest) for m in window.models] == [
        ("1", {"ok": 1, "HF-REQUEST-003": 1}, "digits-1"),
        ("2", {"ok": 1}, "digits-2"),
    ]
    assert window.models[1].latency_s.maximum == 2.0
    assert window.bytes_out == {"report": 5}


def test_the_next_window_begins_where_the_last_ended_and_is_empty() -> None:
    clock = FakeClock()
    meter = WindowMeter(clock)
    meter.on_response(Event())
    first = meter.close()
    clock.advance(1)

    second = meter.close()

    assert second.start_utc_ns == first.end_utc_ns
    assert second.models == ()


def test_no_answer_is_lost_or_counted_twice_between_threads() -> None:
    meter = WindowMeter(FakeClock())
    windows = []
    threads = [threading.Thread(target=lambda: [meter.on_response(Event()) for _ in range(2_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        windows.append(meter.close())
    windows.append(meter.close())

    assert sum(m.outcomes["ok"] for w in windows for m in w.models) == 8_000
    assert sum(m.latency_s.count for w in windows for m in w.models) == 8_000


def test_names_that_a_client_made_up_do_not_leave() -> None:
    meter = WindowMeter(FakeClock())
    meter.on_response(Event(model="patient-0815-has-diabetes", version="x", outcome="HF-REQUEST-002"))

    window = meter.close()

    assert [(m.model, m.version) for m in window.models] == [("", "")]


def test_the_number_of_models_is_bounded() -> None:
    meter = WindowMeter(FakeClock())
    for number in range(MAX_MODELS * 2):
        meter.on_response(Event(model=f"m{number}"))

    window = meter.close()

    assert len(window.models) <= MAX_MODELS + 1
    assert sum(m.outcomes["ok"] for m in window.models) == MAX_MODELS * 2


@pytest.mark.parametrize("latency_s", [math.nan, math.inf, -1.0])
def test_a_latency_that_is_none_counts_the_answer_only(latency_s: float) -> None:
    meter = WindowMeter(FakeClock())
    meter.on_response(Event(latencies_s=(latency_s,)))

    (model,) = meter.close().models

    assert (model.outcomes, model.latency_s.count) == ({"ok": 1}, 0)


def test_processor_time_is_of_this_window() -> None:
    used = iter([Resources(10.0, 100), Resources(12.5, 200), Resources(13.0, 300)])
    meter = WindowMeter(FakeClock(), resources=lambda: next(used))

    first, second = meter.close(), meter.close()

    assert (first.cpu_s, first.memory_bytes) == (2.5, 200)
    assert (second.cpu_s, second.memory_bytes) == (0.5, 300)


def test_own_resources_are_plausible() -> None:
    used = own_resources()

    assert used.cpu_s > 0
    assert used.memory_bytes > 1_000_000
