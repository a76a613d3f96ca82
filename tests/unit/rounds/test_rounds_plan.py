"""Specs, states, the schedule, checkpoints: the parts of a run that need no SuperLink."""

from __future__ import annotations

import dataclasses
import os
import stat

import pytest

from holdfast.errors import RoundError, SettingsError, StateError
from holdfast_federation.rounds.checkpoint import Checkpoints, Progress, sha256_hex
from holdfast_federation.rounds.grid import Ticket
from holdfast_federation.rounds.runs import CREATED, FINAL, RunSpec, after
from holdfast_federation.rounds.schedule import NS_PER_HOUR, ScheduledRun, next_due, read_schedule

SPEC = RunSpec("run", "m", "d" * 64, "p", ("a", "b", "c"))
ENTRY = ScheduledRun("m", "p", every_hours=24.0)


def test_a_spec_survives_its_text():
    assert RunSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    "change",
    [
        {"devices": ()},
        {"devices": ("a", "a")},
        {"rounds": 0},
        {"quorum": 3, "minimum_devices": 2},
        {"minimum_devices": 4},
        {"learning_rate": float("nan")},
        {"clip_norm": 0.0},
        {"deadline_s": -1.0},
        {"codec": "morse"},
        {"proximal_mu": -1.0},
        {"gradient_clip": float("inf")},
    ],
)
def test_a_run_that_cannot_work_is_refused_before_it_starts(change):
    with pytest.raises(RoundError):
        dataclasses.replace(SPEC, **change)


def test_the_states_lead_to_done_and_every_open_one_can_fail():
    state = CREATED
    for event in ("invite", "start", "combine", "evaluate", "finish"):
        assert after(state, "fail") == "failed"
        state = after(state, event)

    assert state in FINAL
    with pytest.raises(RoundError, match="cannot fail"):
        after(state, "fail")


def test_the_first_scheduled_run_is_due_at_once_and_the_next_after_its_interval():
    assert next_due(ENTRY, None, 5) == 5
    assert next_due(ENTRY, 100, 200) == 100 + 24 * NS_PER_HOUR


def test_a_missed_start_is_due_now_and_only_once():
    now = 100 * 24 * NS_PER_HOUR

    assert next_due(ENTRY, 1, now) <= now
    assert next_due(ENTRY, now, now) > now


def test_a_clock_set_back_delays_a_start_by_one_interval_at_most():
    assert next_due(ENTRY, 1_000 * NS_PER_HOUR, 10 * NS_PER_HOUR) == 34 * NS_PER_HOUR


def test_a_schedule_is_read_from_its_tables():
    assert read_schedule([{"model": "m", "purpose": "p", "every_hours": 24}]) == (ENTRY,)


@pytest.mark.parametrize(
    "tables",
    [
        [{"model": "m", "purpose": "p", "every_hours": 24, "colour": "red"}],
        [{"model": "m", "purpose": "p"}],
        [{"model": "m", "purpose": "p", "every_hours": 0}],
        [{"model": "m", "purpose": "p", "every_hours": "daily"}],
        [{"model": "m", "purpose": "p", "every_hours": 1, "quorum": 5, "minimum_devices": 2}],
        [{"model": "m", "purpose": "p", "every_hours": 1}, {"model": "m", "purpose": "p", "every_hours": 2}],
        ["daily"],
    ],
)
def test_a_schedule_that_is_not_one_refuses_the_start(tables):
    with pytest.raises(SettingsError):
        read_schedule(tables)


def test_a_checkpoint_comes_back_as_it_was_saved_and_nobody_else_can_read_it(tmp_path):
    progress = Progress(
        round=3,
        weights=sha256_hex(b"weights"),
        orders={"1": "a"},
        done=("b",),
        contributed=("b",),
        sums=sha256_hex(b"sums"),
        sample_count=7,
        ticket=Ticket(1, 2, "secret"),
        entry={"device_id": "b"},
    )
    checkpoints = Checkpoints(tmp_path / "run")

    checkpoints.save(progress, b"weights", b"sums")

    again = Checkpoints(tmp_path / "run")
    assert again.load() == progress
    assert again.array(progress.sums) == b"sums"
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in (tmp_path / "run").iterdir()}
    assert modes == {0o600}


def test_a_checkpoint_keeps_only_the_arrays_it_names(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(Progress(weights=sha256_hex(b"1")), b"1")

    checkpoints.save(Progress(weights=sha256_hex(b"2")), b"2")

    assert len(list((tmp_path / "run").iterdir())) == 2
    with pytest.raises(StateError, match="cannot be read"):
        checkpoints.array(sha256_hex(b"1"))


def test_a_damaged_array_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path / "run")
    checkpoints.save(Progress(weights=sha256_hex(b"1")), b"1")
    (tmp_path / "run" / sha256_hex(b"1")).write_bytes(b"2")

    with pytest.raises(StateError, match="damaged"):
        checkpoints.array(sha256_hex(b"1"))
