from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.coordinator_rooms import Rooms, make_rooms
from tests.fakes.raw_device import window

from holdfast_federation.ingest import fleet


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rooms(tmp_path: Path, clock: FakeClock) -> Iterator[Rooms]:
    rooms = make_rooms(tmp_path, clock)
    yield rooms
    rooms.close()


def test_percentiles_are_those_of_all_requests_of_all_devices(rooms: Rooms) -> None:
    rng = np.random.default_rng(1)
    everything = []
    for scale in (0.001, 0.01):
        device = rooms.enrolled()
        values = (rng.lognormal(0.0, 0.5, 400) * scale).tolist()
        everything += values
        chain = device.chain()
        rooms.core.ingest.accept(device.device_id, [chain.next(window(values[:200])), chain.next(window(values[200:]))])

    [figures] = rooms.core.fleet.models()

    assert (figures.devices, figures.windows, figures.requests, figures.failed) == (2, 4, 800, 0)
    exact = np.quantile(everything, [0.5, 0.9, 0.99], method="inverted_cdf")
    assert [figures.p50_s, figures.p90_s, figures.p99_s] == pytest.approx(exact.tolist(), rel=0.05)


def test_failed_requests_are_counted_by_code(rooms: Rooms) -> None:
    device = rooms.enrolled()
    rooms.core.ingest.accept(device.device_id, [device.chain().next(window([0.001] * 10, failed=2))])

    [figures] = rooms.core.fleet.models()

    assert (figures.requests, figures.failed) == (12, 2)
    assert figures.outcomes["HF-REQUEST-004"] == 2


def test_old_windows_are_left_out(rooms: Rooms, clock: FakeClock) -> None:
    device = rooms.enrolled()
    chain = device.chain()
    rooms.core.ingest.accept(device.device_id, [chain.next()])
    clock.advance(100)
    since = clock.utc_ns()
    rooms.core.ingest.accept(device.device_id, [chain.next(window([0.5] * 3))])

    [figures] = rooms.core.fleet.models(since)

    assert (figures.windows, figures.requests) == (1, 3)


def test_window_that_does_not_hold_together_is_skipped_and_counted(rooms: Rooms) -> None:
    device = rooms.enrolled()
    chain = device.chain()
    good = window([0.001])
    histogram = replace(good.models[0].latency_s, count=99)
    bad = replace(good, models=(replace(good.models[0], latency_s=histogram),))

    answer = rooms.core.ingest.accept(device.device_id, [chain.next(good), chain.next(bad), chain.next(good)])

    [figures] = rooms.core.fleet.models()
    assert answer.head_seq == 3  # evidence all the same
    assert (figures.windows, figures.left_out, figures.requests) == (2, 1, 2)


def test_traffic_is_added_up_by_purpose(rooms: Rooms) -> None:
    device = rooms.enrolled()
    chain = device.chain()
    first = replace(window(), bytes_out={"report": 10, "federated": 5})
    second = replace(window(), bytes_out={"report": 7, "fetch": 2**63})

    rooms.core.ingest.accept(device.device_id, [chain.next(first), chain.next(second)])

    counts = rooms.core.fleet.traffic()[device.device_id]
    assert (counts["report"], counts["federated"]) == (17, 5)
    assert counts["fetch"] > 2**60  # absurd, but stored and not a crash


def test_only_the_newest_windows_are_merged(rooms: Rooms, monkeypatch: pytest.MonkeyPatch, clock: FakeClock) -> None:
    monkeypatch.setattr(fleet, "MAX_WINDOWS", 2)
    device = rooms.enrolled()
    chain = device.chain()
    for _ in range(5):
        rooms.core.ingest.accept(device.device_id, [chain.next()])
        clock.advance(1)

    [figures] = rooms.core.fleet.models()

    assert figures.windows == 2


def test_fleet_without_reports_is_empty(rooms: Rooms) -> None:
    assert rooms.core.fleet.models() == ()
    assert rooms.core.fleet.traffic() == {}
    assert rooms.core.fleet.refusals() == ()
    assert rooms.core.fleet.reporting() == {}
