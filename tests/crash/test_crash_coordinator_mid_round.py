"""kill -9 of the coordinator in the middle of a federated run: no report lost, nothing counted twice, the run ends.

Everything is real: the coordinator with its SuperLink and its run worker, two agents with samples and their workers.
Only the coordinator is killed; that its children die with it is the tether's promise, and part of the test.
"""

from __future__ import annotations

import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes.plant import FINAL, Plant, holdfast, processes_with, wait_for

from holdfast.evidence.entries import REPORT, parse_entries
from holdfast.evidence.layout import read_evidence
from holdfast.wire.messages import Report, RoundRecord, UpdateStatement

Run = dict[str, object]
DEVICES = 2


def ready_plant(plant: Plant) -> None:
    plant.prepare()
    plant.publish()
    for number in range(DEVICES):
        plant.enrol(f"ward-{number}")
    plant.serve()


def waiting(state: Path) -> int:
    """Records of a device that nobody has acknowledged yet."""
    return int(str(holdfast("agent", "status", str(state))["records_waiting"]))


def children(plant: Plant) -> list[str]:
    """Command lines of the SuperLink and of run workers on this state folder."""
    running = processes_with(str(plant.state))
    return [line for pid, line in running.items() if pid != plant.coordinator_pid]


def kill_and_restart(plant: Plant, run_id: str, when: Callable[[Run], bool]) -> Run:
    """Kill -9 the coordinator once `when` holds of the run. Returns what the run was like just before."""
    wait_for(lambda: when(plant.run_of(run_id)), lambda: str(plant.run_of(run_id)))
    # a SuperLink and a run worker; a coordinator that was just restarted has them a little later
    wait_for(lambda: len(children(plant)) == 2 or is_over(plant.run_of(run_id)), "the children to start")
    seen = plant.run_of(run_id)

    plant.kill_coordinator()

    # they would hold the database and the mailbox of the next coordinator
    wait_for(lambda: not children(plant), lambda: f"the children to die: {children(plant)}")
    plant.start_coordinator()
    return seen


def check_nothing_lost_and_nothing_twice(plant: Plant, run_id: str, run: Run) -> None:
    """End everybody in order, export, verify against all roots, and count what the ledger holds."""
    for agent in plant.agents.values():
        wait_for(lambda agent=agent: waiting(agent.state) <= 1, "records to be delivered")  # type: ignore[misc]
    for agent in plant.agents.values():
        agent.end(signal.SIGTERM)  # hands its last window over on its way out
    assert plant.stop_coordinator() == 0
    verdict = plant.verdict()
    assert (verdict["authenticated"], verdict["verdict"]) == (True, "consistent and authenticated")

    entries = list(parse_entries(read_evidence((plant.folder / "all.evidence").read_bytes()).entries))
    reports = [entry.fact for entry in entries if entry.kind == REPORT]
    for agent in plant.agents.values():
        status = holdfast("agent", "status", str(agent.state))
        chain = [each.seq for each in reports if isinstance(each, Report) and each.device_id == agent.device_id]
        assert status["records_waiting"] == 0
        assert sorted(chain) == list(range(1, int(str(status["records"])) + 1))

    trained: Counter[tuple[int, str]] = Counter()
    samples: Counter[int] = Counter()
    for entry in entries:
        if isinstance(entry.fact, UpdateStatement) and entry.update is not None and entry.update.accepted:
            assert entry.fact.run_id == run_id
            if entry.fact.codec:  # an evaluation has none
                trained[entry.fact.round, entry.fact.device_id] += 1
                samples[entry.fact.round] += entry.fact.sample_count
    rounds = [entry.fact for entry in entries if isinstance(entry.fact, RoundRecord)]
    assert set(trained.values()) == {1}, trained
    assert [record.round for record in rounds] == list(range(1, len(rounds) + 1))
    assert {record.round: record.sample_count for record in rounds} == {
        record.round: samples[record.round] for record in rounds
    }
    assert run["state"] != "done" or len(rounds) == run["rounds"]


def test_killed_mid_round_the_run_goes_on_and_nothing_counts_twice(tmp_path: Path) -> None:
    with Plant(tmp_path) as plant:
        ready_plant(plant)
        run_id = plant.start_run(rounds=2, minimum_devices=DEVICES, quorum=DEVICES)

        seen = kill_and_restart(plant, run_id, lambda run: settled(run) > 0)

        assert seen["state"] == "running"
        run = plant.finish(run_id)
        assert (run["state"], run["reason"]) == ("done", "")
        assert run["candidate_digest"]
        check_nothing_lost_and_nothing_twice(plant, run_id, run)


@pytest.mark.slow
def test_killed_in_inviting_running_and_evaluating_the_run_ends_as_done_or_says_why(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Plant(tmp_path) as plant:
        ready_plant(plant)
        run_id = plant.start_run(rounds=4, minimum_devices=DEVICES, quorum=DEVICES)

        seen = [kill_and_restart(plant, run_id, lambda run: run["state"] == "inviting")["state"]]
        for parts in sorted(rng.sample(range(1, 2 * 4), 2)):  # of 8 in training
            kill_and_restart(plant, run_id, lambda run, parts=parts: is_over(run) or settled(run) >= parts)  # type: ignore[misc]
        seen.append(kill_and_restart(plant, run_id, lambda run: is_over(run) or run["state"] == "evaluating")["state"])

        run = plant.finish(run_id)
        print(f"run ended {run['state']} ({run['reason']})")
        assert seen[0] == "inviting"
        assert run["state"] == "done" or run["reason"], run
        check_nothing_lost_and_nothing_twice(plant, run_id, run)


def settled(run: Run) -> int:
    """How many devices' parts of steps have ended."""
    parts = run["parts"]
    assert isinstance(parts, list)
    return sum(part["state"] not in ("invited", "ordered") for part in parts)


def is_over(run: Run) -> bool:
    return run["state"] in FINAL
