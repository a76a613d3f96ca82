"""Federated rounds with a real SuperLink, real workers and real training; only the link is in-process."""

from __future__ import annotations

import base64
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.round_lab import CANARY, RoundLab, everything_sent

from holdfast.clock import SystemClock
from holdfast.lifecycle import Stop
from holdfast.policy.evaluate import PURPOSE_NOT_ALLOWED, Decision
from holdfast_federation.rounds.schedule import ScheduledRun
from holdfast_federation.rounds.start import RunWish, start_run
from holdfast_federation.rounds.superlink import read_address
from holdfast_federation.rounds.supervisor import RoundSupervisor

DEADLINE_S = 120.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[RoundLab]:
    lab = RoundLab(tmp_path)
    yield lab
    lab.close()


def until(condition: Callable[[], bool], what: str) -> None:
    clock, pause = SystemClock(), threading.Event()
    end_s = clock.monotonic_s() + DEADLINE_S
    while not condition():
        assert clock.monotonic_s() < end_s, f"waited {DEADLINE_S:.0f} s for {what}"
        clock.wait(pause, 0.05)


def parts_of(lab: RoundLab, run_id: str, step: str) -> dict[tuple[int, str], str]:
    return {(p.round, p.device_id): p.state for p in lab.store.parts(run_id) if p.step == step}


def test_a_run_makes_a_better_candidate_and_nothing_of_the_data_leaves(lab: RoundLab):
    for name in ("a", "b"):
        lab.add_device(name)
    broken = lab.add_device("c")
    with np.load(broken.folder / "samples.npz") as archive:
        x, y = archive["x"].copy(), archive["y"].copy()
    y[3] = 99  # no class of the model: its error must not tell what stands beside it
    np.savez(broken.folder / "samples.npz", x=x, y=y)
    spec = lab.spec(rounds=3)

    assert lab.start_worker(spec).wait(DEADLINE_S) == 0

    run = lab.store.get(spec.run_id)
    assert (run.state, run.reason) == ("done", "")
    states = parts_of(lab, spec.run_id, "train")
    assert {device: {states[n, device] for n in (1, 2, 3)} for device in "abc"} == {
        "a": {"contributed"},
        "b": {"contributed"},
        "c": {"rejected"},
    }
    losses = {
        step: sum(p.metrics["loss"] for p in lab.store.parts(spec.run_id) if p.step == step and p.metrics)
        for step in ("evaluate_base", "evaluate_candidate")
    }
    assert losses["evaluate_candidate"] < losses["evaluate_base"]
    candidate = lab.registry.get(run.candidate_digest)
    assert (candidate.signed_by, candidate.run_id, candidate.parent_digest) == ("run", spec.run_id, lab.bundle.digest)
    kinds = [entry for kind in ("offer", "update", "round") for entry in lab.ledger.positions(spec.run_id, kind)]
    assert len(kinds) == 5 + 10 + 3

    until(lambda: not any(member.host.worker_pid for member in lab.members), "the workers to end with their run")
    sent = everything_sent(lab.members)
    sent += (lab.folder / "run_worker.log").read_bytes() + (lab.folder / "flower" / "superlink.log").read_bytes()
    value = np.float32(CANARY)
    assert len(sent) > 10_000
    for trace in (value.tobytes(), value.tobytes()[::-1], b"0.12345679", base64.b64encode(value.tobytes())[:5]):
        assert trace not in sent
    for member in lab.members:
        assert member.host.isolation["namespace"] or member.host.isolation["seccomp"]


def test_a_refusal_is_seen_with_its_reason_and_ends_a_run_that_needs_the_device(lab: RoundLab):
    lab.add_device("a")
    lab.add_device("b", decision=Decision(False, PURPOSE_NOT_ALLOWED, "rounds.purposes = other"))
    spec = lab.spec()

    assert lab.start_worker(spec).wait(DEADLINE_S) == 0

    members = {m.device_id: (m.answer, m.reason_code, m.policy_rule) for m in lab.store.members(spec.run_id)}
    assert lab.store.get(spec.run_id).state == "failed"
    assert members["b"] == ("refused", PURPOSE_NOT_ALLOWED, "rounds.purposes = other")
    assert PURPOSE_NOT_ALLOWED in lab.store.get(spec.run_id).reason
    assert lab.members[1].host.worker_pid == 0


def test_killed_run_worker_goes_on_from_its_checkpoint(lab: RoundLab):
    for name in ("a", "b"):
        lab.add_device(name)
    spec = lab.spec(rounds=3)
    first = lab.start_worker(spec)
    until(lambda: "contributed" in parts_of(lab, spec.run_id, "train").values(), "a first update")

    first.kill()
    first.wait()
    second = lab.start_worker(spec)

    assert second.wait(DEADLINE_S) == 0
    run = lab.store.get(spec.run_id)
    assert run.state == "done" or run.reason
    assert len(lab.ledger.positions(spec.run_id, "update")) <= 10
    assert len(lab.ledger.positions(spec.run_id, "round")) == 3


@pytest.mark.slow
def test_killed_superlink_costs_no_update(lab: RoundLab):
    for name in ("a", "b"):
        lab.add_device(name)
    spec = lab.spec(rounds=3)
    worker = lab.start_worker(spec)
    until(lambda: "contributed" in parts_of(lab, spec.run_id, "train").values(), "a first update")

    os.kill(lab.superlink.pid, signal.SIGKILL)
    until(lab.superlink.tend, "the SuperLink to end")

    assert worker.wait(DEADLINE_S) == 0
    assert lab.store.get(spec.run_id).state == "done"


@pytest.mark.slow
def test_killed_federated_worker_is_seen_and_the_round_goes_on_without_it(lab: RoundLab):
    for name in ("a", "b", "c"):
        lab.add_device(name)
    spec = lab.spec(rounds=2, quorum=2, minimum_devices=3, join_s=30.0)  # the others start beside much else
    worker = lab.start_worker(spec)
    victim = lab.members[2]
    until(lambda: victim.host.worker_pid != 0, "the worker to start")
    victim.link.down = True  # the device is gone: no goodbye, no restart gets through

    assert worker.wait(DEADLINE_S) == 0
    states = parts_of(lab, spec.run_id, "train")
    assert lab.store.get(spec.run_id).state == "done"
    assert states[1, "a"] == states[1, "b"] == "contributed"
    assert states[1, "c"] in ("vanished", "late")


@pytest.mark.slow
def test_a_scheduled_run_is_started_supervised_and_ended(lab: RoundLab):
    for name in ("a", "b"):
        device = lab.add_device(name)
        with lab.database.write() as cx:
            cx.execute(
                "UPDATE devices SET active = ? WHERE device_id = ?", (json.dumps({"blobs": lab.bundle.digest}), name)
            )
        assert device.host.worker_pid == 0
    lab.superlink.stop()
    lab.superlinks[""] = lambda: read_address(lab.folder / "flower")
    entry = ScheduledRun("blobs", "improve", every_hours=24.0, rounds=1, deadline_s=90.0)

    def start(wish: RunWish) -> object:
        return start_run(wish, lab.store, lab.devices, lab.registry.container)

    supervisor = RoundSupervisor(lab.folder, "lab/ledger", lab.store, lab.clock, (entry,), start)
    stop = Stop()
    task = threading.Thread(target=supervisor.run, args=(stop,))
    task.start()
    until(lambda: any(run.state in ("done", "failed") for run in lab.store.all()), "the run to end")
    stop.set()
    task.join(DEADLINE_S)

    assert [(run.state, run.reason) for run in lab.store.all()] == [("done", "")]
    assert supervisor.worker_pids() == {}
    assert supervisor.superlink_pid == 0
