"""Rounds of every kind of bundle, answered by the worker: numbers as labels, options of an offer, local statistics."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from tests.fakes.clock import FakeClock
from tests.fakes.models import classifier
from tests.fakes.trainable_bundles import numbers, packed_with

from holdfast.author.pack import TrainingPlan
from holdfast.autodiff.build import StepOptions
from holdfast.errors import StateError, TrainingError
from holdfast.learn import prepared
from holdfast.learn.answer import Answerer
from holdfast.learn.trainable import open_trainable
from holdfast.learn.transport import RoundReply, RoundTask
from holdfast.update.codecs import codec_named

REGRESSION = TrainingPlan(batch=10, loss="mse", optimizer="adam", proximal_mu=0.1, gradient_clip=1.0)
LOCAL = TrainingPlan(batch=10, step=StepOptions(batch_norm="local"))


def normalised() -> bytes:
    """A classifier of two classes with a normalisation in it."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 6)).astype(np.float32),
        "scale": np.ones(6, np.float32),
        "bias": np.zeros(6, np.float32),
        "mean": np.full(6, 0.5, np.float32),
        "variance": np.full(6, 2.0, np.float32),
        "v": rng.standard_normal((6, 2)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["input", "w"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "variance"], ["b"]),
        helper.make_node("MatMul", ["b", "v"], ["logits"]),
    ]
    return classifier(nodes, weights, inputs={"input": ("batch", 4)})


class Agent:
    """Takes every offer; `terms` changes what it says. Keeps what it signed."""

    def __init__(self, place: Path, bundle: bytes, **terms: object) -> None:
        self.terms = terms
        self.signed: list[dict[str, object]] = []
        self.weights = open_trainable(bundle).weights
        (place / "bundle").write_bytes(bundle)
        (place / "state").mkdir()
        self.place = place

    def ask(self, path: str, body: bytes) -> dict[str, object]:
        return {
            **{"offer_sha256": body.hex(), "run_id": "run", "round": 1, "handler": "train"},
            **{"weights_sha256": hashlib.sha256(self.weights.tobytes()).hexdigest()},
            **{"weights_size_bytes": self.weights.nbytes, "codec": "float32", "clip_norm": 0.0},
            **{"epochs": 2, "batch": 10, "learning_rate": 0.02, "seed": 3, "max_samples": 1000},
            **{"hold_out": 0.2, "left_s": 100.0, "idle_s": 40.0},
            **{"bundle": str(self.place / "bundle"), "data": str(self.place / "data.npz")},
            **self.terms,
        }

    def sign(self, fields: dict[str, object]) -> bytes:
        self.signed.append(fields)
        return b"signed"

    def answer(self, offer: str, handler: str = "train", state: Path | None = None) -> RoundReply:
        """A fresh worker answers one offer."""
        self.terms["handler"] = handler
        task = RoundTask("1", 1, handler, {"weights": self.weights}, {"offer": bytes.fromhex(offer)})
        return Answerer(self, FakeClock(), state).answer(task)

    def delta(self, offer: str, state: Path | None = None) -> np.ndarray:
        update = self.answer(offer, state=state).arrays["update"].tobytes()
        return codec_named("float32").decode(update, len(update) // 4)


@pytest.fixture
def regression(tmp_path: Path) -> Agent:
    np.savez(tmp_path / "data.npz", **numbers(100))
    return Agent(tmp_path, packed_with(REGRESSION))


@pytest.fixture
def federated_norm(tmp_path: Path) -> Agent:
    x = numbers(100)["x"]
    np.savez(tmp_path / "data.npz", x=x, y=(x[:, 0] > 0).astype(np.int64))
    return Agent(tmp_path, packed_with(LOCAL, model=normalised()), epochs=1)


def test_a_regression_is_learned_and_judged_without_an_accuracy(regression: Agent) -> None:
    reply = regression.answer("aa")
    judged = regression.answer("bb", "evaluate")

    learned, evaluated = (signed["metrics"] for signed in regression.signed)
    assert learned["loss_after"] < learned["loss_before"]
    assert set(evaluated) == {"loss", "count"}
    assert (evaluated["count"], regression.signed[1]["sample_count"]) == (40.0, 20)  # two numbers for each sample
    assert (reply.metrics["num-examples"], judged.metrics["num-examples"]) == (80, 20)


def test_an_offer_pulls_and_clips_as_it_says(regression: Agent) -> None:
    plain = regression.delta("aa")
    regression.terms["gradient_clip"] = 1e-12
    clipped = regression.delta("aa")
    regression.terms |= {"gradient_clip": 0.0, "proximal_mu": 100.0}
    pulled = regression.delta("aa")

    assert np.linalg.norm(clipped) < 0.5 * np.linalg.norm(plain)  # Adam's epsilon takes over
    assert np.linalg.norm(pulled) < 0.8 * np.linalg.norm(plain)


def test_an_offer_that_pulls_is_refused_where_the_graph_cannot(federated_norm: Agent) -> None:
    federated_norm.terms["proximal_mu"] = 0.1

    with pytest.raises(TrainingError, match="no input 'proximal_mu'"):
        federated_norm.answer("aa")


def test_local_statistics_go_on_from_round_to_round_and_leave_in_no_update(federated_norm: Agent) -> None:
    agent, state = federated_norm, federated_norm.place / "state"
    values = sum(size for size in (4 * 6, 6, 6, 6 * 2))

    first = agent.delta("aa", state)
    again = agent.delta("aa", state)
    agent.delta("bb", state)
    without = agent.signed[0]["metrics"]
    agent.answer("cc", "evaluate", state)
    agent.answer("cc", "evaluate", None)

    assert first.size == values  # neither means nor variances
    np.testing.assert_array_equal(first, again)  # the same offer starts where it started
    assert without == agent.signed[1]["metrics"]
    own, authors = (signed["metrics"]["loss"] for signed in agent.signed[-2:])
    assert own != authors  # judged with this device's statistics, not with those that the round's weights bring
    (kept,) = (state / "statistics").iterdir()
    assert kept.suffix == ".statistics"


def test_a_damaged_file_of_statistics_means_the_authors(federated_norm: Agent) -> None:
    agent, state = federated_norm, federated_norm.place / "state"
    first = agent.delta("aa", state)
    (kept,) = (state / "statistics").iterdir()
    kept.write_bytes(kept.read_bytes()[:40])

    np.testing.assert_array_equal(agent.delta("bb", state), first)


def test_a_bundle_is_checked_once_on_a_device(regression: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    state, checks = regression.place / "state", []
    check = prepared.check_on_device
    monkeypatch.setattr(prepared, "check_on_device", lambda *given: checks.append(check(*given)))

    for offer in ("aa", "bb", "cc"):
        regression.answer(offer, state=state)
    digest = open_trainable((regression.place / "bundle").read_bytes()).bundle.digest
    (written,) = json.loads((state / "checked.json").read_text())
    (state / "checked.json").write_text(json.dumps([written.replace(" 1.", " 0.")]))
    regression.answer("dd", state=state)

    assert written.startswith(digest)
    assert len(checks) == 2  # once, and once more with another version of the runtime


def test_a_full_disk_sends_nothing_and_loses_nothing(federated_norm: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, state = federated_norm, federated_norm.place / "state"
    agent.delta("aa", state)
    (kept,) = (state / "statistics").iterdir()
    before, signed = kept.read_bytes(), len(agent.signed)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StateError, match="No space left"):
            agent.delta("bb", state)

    assert (kept.read_bytes(), len(agent.signed)) == (before, signed)
    assert sorted(each.name for each in (state / "statistics").iterdir()) == [kept.name]
    agent.delta("bb", state)
