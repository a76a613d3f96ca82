"""Nothing of the data leaves: canaries in the samples are searched for in all that devices sent, said and logged.

Real processes, with a recorder where a device's requests are still in the clear: reports, check-ins and the tunnel of
the rounds. The declared exception is the update: its array is found by the hash in the device's signed statement,
decoded, and taken out before the search. Data windows are on, one device's samples are broken, and everybody logs at
level debug.
"""

from __future__ import annotations

import base64
import hashlib
import json
import random
import signal
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.canaries import Canary, find
from tests.fakes.plant import MODEL, Agent, Plant, clouds
from tests.fakes.recorded_holdfast import read_record

from holdfast.evidence.entries import parse_entries
from holdfast.evidence.layout import read_evidence
from holdfast.update.codecs import codec_named
from holdfast.wire.convert import from_bytes
from holdfast.wire.messages import DataWindow, FleetCallRequest, Report, UpdateStatement

SAMPLES = (
    Canary("third feature", float(np.float32(0.7316254))),
    Canary("fourth feature", float(np.float32(-1.9085371))),
)
REQUESTS = (Canary("feature of a request", float(np.float32(2.6170943))), Canary("wrong request", 581_349_720_663))
LABEL = Canary("label", 7_316_254_981_337)
CANARIES = (*SAMPLES, *REQUESTS, LABEL)
PARAMETERS = 4 * 8 + 8 + 8 * 3 + 3  # of the plant's model
ROUNDS = 1
TUNNEL = "/holdfast.wire.v1.FleetService/FleetCall"


def plant_canaries(agent: Agent, *, broken: bool) -> None:
    """Samples whose every row holds both canaries; a broken device has one label that is no class of the model."""
    x, y = clouds(sum(agent.name.encode()), 60)
    x[:, 2:] = [canary.value for canary in SAMPLES]
    if broken:
        y[7] = LABEL.value
    np.savez(agent.data, x=x, y=y)


def ask(agent: Agent) -> None:
    """Requests with canaries: enough good ones to close a data window, and one that is refused with an error."""
    x, _ = clouds(3, 40)
    x[:, 3] = REQUESTS[0].value
    tensor = {"name": "x", "datatype": "FP32", "shape": [40, 4], "data": x.ravel().tolist()}
    status, _ = agent.post(f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 200
    wrong = {**tensor, "shape": [10, 3], "data": [float(SAMPLES[0].value)] * 30, "name": str(REQUESTS[1].value)}
    status, said = agent.post(f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [wrong]}).encode())
    assert status == 400, said


def facts(plant: Plant) -> list[object]:
    entries = parse_entries(read_evidence((plant.folder / "all.evidence").read_bytes()).entries)
    return [entry.fact for entry in entries if entry.update is None or entry.update.accepted]


def without_update(body: bytes, statements: list[UpdateStatement]) -> tuple[bytes, int]:
    """The body with the array of any of these updates blanked, after it was decoded; and how many were there."""
    count = 0
    for statement in statements:
        size = statement.array_size_bytes
        for at in range(len(body) - size + 1):
            part = body[at : at + size]
            if hashlib.sha256(part).digest() != statement.array_sha256:
                continue
            delta = codec_named(statement.codec).decode(part, PARAMETERS)  # it is an update and nothing else
            assert np.linalg.norm(delta) <= 2 * statement.clip_norm_applied
            body, count = body[:at] + bytes(size) + body[at + size :], count + 1
    return body, count


def test_no_sample_leaves_but_in_the_declared_update(tmp_path: Path) -> None:
    with Plant(tmp_path) as plant:
        plant.coordinator_environment = {"HOLDFAST_LOG_LEVEL": "DEBUG"}
        plant.prepare()
        plant.publish()
        for name in ("ward-a", "ward-b"):
            agent = plant.enrol(name)
            plant_canaries(agent, broken=name == "ward-b")
            agent.module = "tests.fakes.recorded_holdfast"
            record = tmp_path / f"{name}.requests"
            agent.environment = {"HOLDFAST_LOG_LEVEL": "DEBUG", "RECORDED_REQUESTS": str(record)}
        plant.serve()
        for agent in plant.agents.values():
            ask(agent)
        refused_id = plant.start_run(purpose="advertising", minimum_devices=1, quorum=1, rounds=1)
        run = plant.finish(plant.start_run(rounds=ROUNDS, minimum_devices=2, quorum=1))
        refused = plant.finish(refused_id)
        for agent in plant.agents.values():
            agent.end(signal.SIGTERM)
        assert plant.stop_coordinator() == 0
        assert plant.verdict()["authenticated"] is True

        # what should have happened, happened
        broken = plant.agents["ward-b"]
        parts = run["parts"]
        assert isinstance(parts, list)
        assert (refused["state"], run["state"], run["reason"]) == ("failed", "done", "")
        ended = {(part["step"], part["device_id"] == broken.device_id, part["state"]) for part in parts}
        assert {state for step, is_broken, state in ended if step == "train" and is_broken} == {"rejected"}
        assert {state for _, is_broken, state in ended if not is_broken} == {"contributed"}
        said = facts(plant)
        windows = [each for each in said if isinstance(each, Report) and isinstance(each.data, DataWindow)]
        assert {each.device_id for each in windows} == {agent.device_id for agent in plant.agents.values()}

        statements = [each for each in said if isinstance(each, UpdateStatement) and each.codec]
        requests = [each for name in plant.agents for each in read_record(tmp_path / f"{name}.requests")]
        sent, updates = [], 0
        for method, request in requests:
            data = request
            if method == TUNNEL:
                call = from_bytes(FleetCallRequest, request, max_bytes=2**25)
                body, found = without_update(call.body, statements)
                data, updates = json.dumps(dict(call.headers)).encode() + body, updates + found
            sent.append(data)

    everything = b"\n".join(sent)
    logs = {path: path.read_bytes() for path in tmp_path.rglob("*.log")}
    stored = {path: path.read_bytes() for path in plant.state.rglob("*") if path.is_file()}
    assert updates == ROUNDS  # of the one device that trains
    names = {"ward-a.log", "ward-b.log", "worker.log", "superlink.log", "coordinator.log"}
    assert {path.name for path in logs} >= names
    assert b"DatasetError" in logs[broken.state / "rounds" / "worker.log"]  # the error path was taken
    assert b" INFO holdfast." in logs[broken.log]
    # in the clear: names that must be there are seen by the same search
    assert f"{run['run_id']}".encode() in everything
    assert all(agent.device_id.encode() in everything for agent in plant.agents.values())
    assert find(everything, CANARIES) == []
    leaking = {path: find(data, CANARIES) for path, data in {**logs, **stored}.items()}
    assert {path.name: found for path, found in leaking.items() if found} == {}
    check_search_finds_leaks(everything[:20_000])


def check_search_finds_leaks(clean: bytes) -> None:
    """The negative control: the same traffic with one leak put in somewhere is not clean."""
    rng = random.Random(1)
    for canary in CANARIES:
        for leak in leaks(canary).values():
            at = rng.randrange(len(clean))
            assert find(clean[:at] + b"\0" + leak + b"\0" + clean[at:], (canary,)), leak


def leaks(canary: Canary) -> dict[str, bytes]:
    """The canary as a careless program might let it out."""
    value = canary.value
    kinds = ["<q", ">q", "<d"] if isinstance(value, int) else ["<f", ">f", "<d", ">d"]
    found = {kind: struct.pack(kind, value) for kind in kinds}
    for kind in kinds:
        for before in range(3):
            row = b"\x07" * before + struct.pack(kind, value) + b"\x09\x0a"
            found[f"base64 of {kind} at {before}"] = base64.b64encode(row)
            found[f"urlsafe base64 of {kind} at {before}"] = base64.urlsafe_b64encode(row)
        found[f"hex of {kind}"] = struct.pack(kind, value).hex().encode()
        found[f"repr of {kind}"] = repr(b"ab" + struct.pack(kind, value)).encode()
    found["str"] = str(value).encode()
    found["json"] = json.dumps([1.5, value]).encode()
    if isinstance(value, float):
        found |= {"str float32": str(np.float32(value)).encode(), "numpy": str(np.array([value, 2.0])).encode()}
        found |= {f"%.{digits}g": f"{value:.{digits}g}".encode() for digits in range(5, 18)}
        found |= {f"%.{digits}e": f"{value:.{digits}e}".encode() for digits in range(4, 17)}
        found |= {f"%.{digits}f": f"{value:.{digits}f}".encode() for digits in range(5, 17)}
    return found


@pytest.mark.parametrize("canary", CANARIES, ids=lambda canary: canary.name)
def test_search_finds_every_kind_of_leak_and_nothing_in_random_bytes(canary: Canary) -> None:
    noise = random.Random(2).randbytes(20_000) + base64.b64encode(random.Random(3).randbytes(20_000))

    assert find(noise, (canary,)) == []
    for kind, leak in leaks(canary).items():
        assert find(noise[:5_000] + leak + noise[5_000:], (canary,)), kind
