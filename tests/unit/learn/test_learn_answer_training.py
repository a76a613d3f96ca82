"""A round answered for real: what a codec leaves out waits for the next round, and nothing counts twice."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.trainable_bundles import packed, samples

from holdfast.errors import RoundError
from holdfast.learn.answer import Answerer
from holdfast.learn.pause_flag import PauseFlag
from holdfast.learn.trainable import open_trainable
from holdfast.learn.transport import RoundTask
from holdfast.update.codecs import codec_named

CODEC = "topk10-float32"


class SigningAgent:
    """Takes every offer and signs every statement. `offer` is the hash of the offer that comes next."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.offer = "aa"

    def ask(self, path: str, body: bytes) -> dict[str, object]:
        weights = open_trainable(packed()).weights.tobytes()
        return {
            **{"offer_sha256": self.offer, "run_id": "run", "round": 1, "handler": "train"},
            **{"weights_sha256": hashlib.sha256(weights).hexdigest(), "weights_size_bytes": len(weights)},
            **{"epochs": 2, "batch": 10, "learning_rate": 0.1, "seed": 3, "max_samples": 1000},
            **{"codec": CODEC, "clip_norm": 0.0, "hold_out": 0.2, "left_s": 100.0, "idle_s": 40.0},
            **{"bundle": str(self.place / "bundle"), "data": str(self.place / "data.npz")},
        }

    def sign(self, fields: dict[str, object]) -> bytes:
        return b"signed"


@pytest.fixture
def agent(tmp_path: Path) -> SigningAgent:
    (tmp_path / "bundle").write_bytes(packed())
    np.savez(tmp_path / "data.npz", **samples(100))
    (tmp_path / "state").mkdir()
    return SigningAgent(tmp_path)


def update(agent: SigningAgent, offer: str, state: Path | None) -> np.ndarray:
    """A fresh worker answers one offer; the decoded update."""
    agent.offer = offer
    weights = open_trainable(packed()).weights
    task = RoundTask("1", 1, "train", {"weights": weights}, {"offer": b"offer"})
    arrays: Mapping[str, np.ndarray] = Answerer(agent, FakeClock(), state).answer(task).arrays
    return codec_named(CODEC).decode(arrays["update"].tobytes(), weights.size)


def test_what_top_k_left_out_comes_with_the_next_offer_and_not_with_the_same_one(agent: SigningAgent) -> None:
    state = agent.place / "state"

    first = update(agent, "aa", state)
    again = update(agent, "aa", state)
    later = [update(agent, f"b{number}", state) for number in range(8)]

    np.testing.assert_array_equal(first, again)
    sent = np.any([each != 0 for each in later], axis=0)
    assert np.any(sent & (first == 0))  # small changes, left out again and again, have become large ones


def test_a_codec_that_leaves_out_is_refused_where_nothing_can_be_kept(agent: SigningAgent) -> None:
    with pytest.raises(RoundError, match="needs a place"):
        update(agent, "aa", None)


def test_a_round_leaves_a_checkpoint_that_the_next_one_replaces(agent: SigningAgent) -> None:
    state = agent.place / "state"
    update(agent, "aa", state)
    update(agent, "bb", state)

    assert sorted(each.name for each in state.iterdir()) == ["checked.json", "residuals", "training.checkpoint"]
    assert len(list((state / "residuals").iterdir())) == 1


def test_training_of_an_offer_pauses_while_the_flag_is_up(agent: SigningAgent) -> None:
    flag, clock = PauseFlag(agent.place / "pause"), FakeClock()
    flag.show(wanted=True)
    asked = []

    def should_pause() -> bool:
        asked.append(flag.is_up())
        flag.show(wanted=False)
        return asked[-1]

    task = RoundTask("1", 1, "train", {"weights": open_trainable(packed()).weights}, {"offer": b"offer"})
    start_s = clock.monotonic_s()
    reply = Answerer(agent, clock, agent.place / "state", should_pause).answer(task)

    assert asked[:2] == [True, False]
    assert not any(asked[1:])
    assert clock.monotonic_s() > start_s
    assert reply.metrics["num-examples"] > 0
