"""Learning yields to serving, the whole way: answers that are told of, their p99, the flag, a trainer that stands.

The parts are those of an agent and its worker, put together as they are there; time and latencies are scripted.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tests.fakes.clock import FakeClock
from tests.fakes.models import he_mlp

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.learn.authority import RoundAuthority
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.host import PAUSE_NAME, RoundHost, WorkerSettings
from holdfast.learn.pause_flag import PauseFlag
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainerOptions, TrainResult, TrainSettings
from holdfast.observe.objective import LOOK_S, LOOKS, LatencyObjective
from holdfast.policy.evaluate import Decision
from holdfast.serving.protocols import TapEvent
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.messages import FleetCallRequest, FleetCallResponse

OBJECTIVE_S, QUICK_S, SLOW_S = 0.020, 0.004, 0.150
STEP_S = 0.1
SLOW_FROM_S, SLOW_UNTIL_S = 2.0, 4.0
WINDOW_S = LOOK_S * LOOKS
CONTRACT = DataContract((InputContract("input", "float32", (4,)),), class_count=3)
GRAPHS = build_graphs(he_mlp([4, 8, 3]), batch=10)
WEIGHTS = np.frombuffer(split_weights(he_mlp([4, 8, 3])).weights, "<f4")
SETTINGS = TrainSettings(epochs=8, batch=10, learning_rate=0.1, seed=0)


class CutLink:
    def fleet_call(self, request: FleetCallRequest) -> FleetCallResponse:
        raise AssertionError("nobody calls")


class RunningProcess:
    pid = 7

    def poll(self) -> None:
        return None


class Machine(FakeClock):
    """Serves twenty requests in each half second that passes, looks at its objective, and tends to its worker."""

    def __init__(self, folder: Path, latency_s: Callable[[float], float]) -> None:
        super().__init__()
        self._latency_s = latency_s
        self._began_s = self._looked_s = self.monotonic_s()
        self.objective = LatencyObjective(OBJECTIVE_S)
        key = PrivateKey.generate(ED25519)
        authority = RoundAuthority(
            "a", key, key.public_key, lambda *_: Decision(False, "no_policy"), lambda _: None, lambda _: None
        )
        settings = WorkerSettings(folder / "key", folder)
        self.host = RoundHost(CutLink(), authority, settings, self, lambda: self.objective.is_missed)
        self.host._process, self.host._folder = RunningProcess(), folder  # type: ignore[assignment]  # a worker that runs

    @property
    def at_s(self) -> float:
        return self.monotonic_s() - self._began_s

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        while self.monotonic_s() - self._looked_s >= LOOK_S:
            self._looked_s += LOOK_S
            latencies = [self._latency_s(self._looked_s - self._began_s)] * 20
            self.objective.on_response(TapEvent("m", "1", ["r"] * 20, latencies, "ok", None, None))
            self.objective.look()
            self.host.tend()

    def wait(self, event: threading.Event, timeout_s: float) -> bool:
        self.advance(timeout_s)
        return event.is_set()


def trained(
    folder: Path, latency_s: Callable[[float], float], longest_pause_s: float
) -> tuple[TrainResult, list[float]]:
    """The result, and when each step was done."""
    machine, flag, steps = Machine(folder, latency_s), PauseFlag(folder / PAUSE_NAME), []
    x = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    dataset = LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, :3], axis=1)}, CONTRACT)
    options = TrainerOptions(longest_pause_s=longest_pause_s)
    trainer = Trainer(GRAPHS.train, GRAPHS.evaluate, GRAPHS.layout, options, machine)

    def on_step(_: object) -> None:
        machine.advance(STEP_S)
        steps.append(machine.at_s)

    return trainer.train(WEIGHTS, dataset, SETTINGS, on_step, should_pause=flag.is_up), steps


def slow_for_two_seconds(at_s: float) -> float:
    return SLOW_S if SLOW_FROM_S <= at_s < SLOW_UNTIL_S else QUICK_S


def test_training_stands_still_while_the_p99_misses_its_objective_and_learns_the_same(tmp_path: Path) -> None:
    undisturbed, _ = trained(tmp_path, lambda _: QUICK_S, 600.0)

    result, steps = trained(tmp_path, slow_for_two_seconds, 600.0)

    # the slow answers of the first look are seen at its end, and forgotten a window after the last of them
    forgotten_s = SLOW_UNTIL_S + WINDOW_S - LOOK_S
    assert not [at_s for at_s in steps if SLOW_FROM_S + STEP_S < at_s - 1e-6 < forgotten_s]
    assert [at_s for at_s in steps if at_s <= SLOW_FROM_S]
    assert [at_s for at_s in steps if at_s > forgotten_s]
    assert (result.steps, result.stopped_early) == (80, False)
    assert result.delta.tobytes() == undisturbed.delta.tobytes()


def test_training_ends_with_what_it_has_when_serving_stays_slow(tmp_path: Path) -> None:
    result, steps = trained(tmp_path, lambda at_s: SLOW_S if at_s >= SLOW_FROM_S else QUICK_S, 30.0)

    assert result.stopped_early
    assert 0 < result.steps == len(steps) < 80
    assert max(steps) <= SLOW_FROM_S + STEP_S
