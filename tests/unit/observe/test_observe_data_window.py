"""Counts about the data leave only in windows that are large enough and allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.policies import DAY_NS, make_policy

from holdfast.bundle.manifest import FeatureEdges, ProfileEdges, Scores
from holdfast.errors import StateError
from holdfast.observe.data_window import MAX_QUEUED, DataMeter, ModelProfile, confidence
from holdfast.observe.recorder import Pace, WindowRecorder, data_allowed
from holdfast.observe.window import WindowMeter
from holdfast.policy.document import VerifiedPolicy, read_policy, sign_policy
from holdfast.policy.rules import ReportRules
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import DataWindow, OperationalWindow

SITE = PrivateKey.generate("ed25519")
PROFILE = ModelProfile(
    "ab" * 32,
    ProfileEdges((FeatureEdges("x[0]", (0.0, 1.0)), FeatureEdges("x[1]", (5.0,))), (0.5, 0.9)),
    ("no", "yes"),
    Scores("scores", "logits"),
)


@dataclass
class Event:
    inputs: Mapping[str, npt.NDArray[np.generic]] | None
    outputs: Mapping[str, npt.NDArray[np.generic]] | None
    model: str = "digits"
    version: str = "1"
    latencies_s: tuple[float, ...] = (0.01,)
    outcome: str = "ok"


def make_event(rows: int, seed: int = 1) -> Event:
    generator = np.random.default_rng(seed)
    return Event(
        {"x": generator.normal(size=(rows, 2)).astype(np.float32)},
        {"scores": generator.normal(size=(rows, 2)).astype(np.float32)},
    )


def make_meter(*, allowed: bool = True) -> DataMeter:
    return DataMeter(FakeClock(), lambda model, version: PROFILE, lambda: allowed)


def test_counts_agree_with_counting_by_hand() -> None:
    meter = make_meter()
    x = np.array([[-1.0, 0.0], [0.0, 5.0], [0.5, 9.0], [7.0, 4.9]], np.float32)
    scores = np.array([[0.0, 0.0], [3.0, 0.0], [0.0, 3.0], [0.0, 1.0]], np.float32)
    meter.on_response(Event({"x": x}, {"scores": scores}))

    (window,) = meter.close(4)

    assert window.rows == 4
    assert {name: bins.counts for name, bins in window.features.items()} == {"x[0]": (1, 2, 1), "x[1]": (2, 2)}
    assert window.predictions == {"no": 2, "yes": 2}
    assert window.confidence.counts == (0, 2, 2)  # 0.5, 0.731, 0.953, 0.953


def test_a_window_below_the_minimum_merges_forward() -> None:
    meter = make_meter()
    meter.on_response(make_event(60))
    assert meter.close(100) == []

    meter.on_response(make_event(40, seed=2))

    (window,) = meter.close(100)
    assert window.rows == 100
    assert sum(window.features["x[0]"].counts) == 100
    assert meter.close(1) == []


def test_nothing_is_counted_while_the_policy_forbids_it() -> None:
    allowed = [False]
    meter = DataMeter(FakeClock(), lambda model, version: PROFILE, lambda: allowed[0])
    meter.on_response(make_event(200))
    allowed[0] = True

    assert meter.close(1) == []


def test_a_policy_that_forbids_throws_away_what_was_counted() -> None:
    allowed = [True]
    meter = DataMeter(FakeClock(), lambda model, version: PROFILE, lambda: allowed[0])
    meter.on_response(make_event(200))
    meter.count()
    allowed[0] = False
    assert meter.close(1) == []
    allowed[0] = True

    assert meter.close(1) == []


def test_a_full_queue_leaves_requests_out_and_never_waits() -> None:
    meter = make_meter()
    for _ in range(MAX_QUEUED + 500):
        meter.on_response(make_event(1))

    (window,) = meter.close(1)

    assert window.rows == MAX_QUEUED


@pytest.mark.parametrize(
    "event",
    [
        Event(None, None),
        Event({}, {}, outcome="HF-REQUEST-003"),
        Event({"x": np.zeros((0, 2), np.float32)}, {"scores": np.zeros((0, 2), np.float32)}),
        Event({"x": np.array(["secret"])}, {"scores": np.array(["text"])}),
        Event({"other": np.array(3.0)}, {"scores": np.full((1, 2), np.nan)}),
    ],
)
def test_odd_arrays_count_nothing_and_do_not_raise(event: Event) -> None:
    meter = make_meter()
    meter.on_response(event)

    assert sum(window.rows for window in meter.close(1)) == 0


def test_a_model_without_profile_is_not_counted() -> None:
    meter = DataMeter(FakeClock(), lambda model, version: None, lambda: True)
    meter.on_response(make_event(200))

    assert meter.close(1) == []


def test_confidence_of_logits_is_the_softmax_maximum() -> None:
    scores = np.array([[1.0, 2.0, 3.0], [-1000.0, 0.0, 1000.0]])
    shifted = np.exp(scores - scores.max(axis=1, keepdims=True))
    expected = (shifted / shifted.sum(axis=1, keepdims=True)).max(axis=1)

    np.testing.assert_allclose(confidence(scores, logits=True), expected)
    np.testing.assert_array_equal(confidence(scores, logits=False), [3.0, 1000.0])


def signed(**changes: object) -> VerifiedPolicy:
    return read_policy(sign_policy(make_policy(**changes), SITE), SITE.public_key)


class Records:
    def __init__(self) -> None:
        self.bodies: list[OperationalWindow | DataWindow] = []
        self.full = False

    def append(self, body: OperationalWindow | DataWindow) -> int:
        if self.full:
            raise StateError("the disk is full")
        self.bodies.append(body)
        return len(self.bodies)

    @property
    def data_rows(self) -> list[int]:
        return [body.rows for body in self.bodies if isinstance(body, DataWindow)]


def make_recorder(policy: VerifiedPolicy | None) -> tuple[WindowRecorder, DataMeter, Records, FakeClock]:
    clock, records = FakeClock(), Records()
    meter = DataMeter(clock, lambda model, version: PROFILE, lambda: data_allowed(policy, clock))
    recorder = WindowRecorder((WindowMeter(clock), meter), lambda: policy, records.append, Pace(60.0, 600.0), clock)
    return recorder, meter, records, clock


def test_the_recorder_lets_data_leave_only_in_large_slow_windows() -> None:
    recorder, meter, records, clock = make_recorder(signed())
    meter.on_response(make_event(99))
    clock.advance(600)
    recorder.tick()
    assert records.data_rows == []

    meter.on_response(make_event(1))
    recorder.tick()  # large enough, but not slow enough
    assert records.data_rows == []
    clock.advance(600)
    recorder.tick()

    assert records.data_rows == [100]
    assert len(records.bodies) == 4


@pytest.mark.parametrize(
    ("policy", "operational"),
    [
        (None, 1),
        (signed(reports=ReportRules(data=False)), 1),
        (signed(reports=ReportRules(operational=False, data=False)), 0),
        (signed(expires_utc_ns=make_policy().issued_utc_ns + 1_000_000_000, number=2), 1),
    ],
)
def test_the_recorder_sends_no_data_where_the_policy_says_no(policy: VerifiedPolicy | None, operational: int) -> None:
    recorder, meter, records, clock = make_recorder(policy)
    clock.advance(DAY_NS / 1e9)
    meter.on_response(make_event(500))
    recorder.tick()

    assert records.data_rows == []
    assert len(records.bodies) == operational


def test_windows_wait_for_a_disk_with_room() -> None:
    recorder, _, records, _ = make_recorder(None)
    records.full = True
    for _ in range(3):
        recorder.tick()
    records.full = False

    recorder.tick()

    assert len(records.bodies) == 4
