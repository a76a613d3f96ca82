"""The worker refuses weights that are not the offer's, before anything is loaded or trained."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from tests.fakes.clock import FakeClock

from holdfast.errors import RoundError
from holdfast.learn.answer import Answerer
from holdfast.learn.transport import RoundTask
from holdfast.learn.worker import answer_next

WEIGHTS = np.arange(4, dtype=np.float32)
TERMS = {
    "offer_sha256": "00",
    "run_id": "run",
    "round": 1,
    "handler": "train",
    "weights_sha256": hashlib.sha256(WEIGHTS.tobytes()).hexdigest(),
    "weights_size_bytes": 16,
    "epochs": 1,
    "batch": 1,
    "learning_rate": 0.1,
    "seed": 0,
    "max_samples": 5,
    "codec": "float32",
    "clip_norm": 1.0,
    "bundle": "/nowhere/bundle",
    "data": "/nowhere/data",
    "hold_out": 0.2,
    "left_s": 10.0,
    "idle_s": 40.0,
}


class FakeAgent:
    """Allows everything, or nothing."""

    def __init__(self, refusal: str = "") -> None:
        self.refusal = refusal

    def ask(self, path: str, body: bytes) -> dict[str, object]:
        if self.refusal:
            raise RoundError(self.refusal)
        return dict(TERMS)

    def sign(self, fields: dict[str, object]) -> bytes:
        raise AssertionError("nothing here gets as far as a signature")


class FakeTransport:
    """One message; keeps what was answered."""

    def __init__(self, task: RoundTask) -> None:
        self.task: RoundTask | None = task
        self.codes: list[str] = []

    def next_task(self) -> RoundTask | None:
        task, self.task = self.task, None
        return task

    def reply(self, task: RoundTask, reply: object) -> None:
        raise AssertionError("nothing here may be answered with content")

    def reply_error(self, task: RoundTask, code: str) -> None:
        self.codes.append(code)


def task(weights: np.ndarray, handler: str = "train") -> RoundTask:
    return RoundTask("1", 1, handler, {"weights": weights}, {"offer": b"offer"})


BAD = {
    "another value": WEIGHTS + 1,
    "another length": WEIGHTS[:3].copy(),
    "another dtype": WEIGHTS.astype(np.float64),
    "another shape": WEIGHTS.reshape(2, 2),
}


@pytest.mark.parametrize("case", BAD)
def test_weights_that_are_not_the_offers_are_refused(case: str):
    with pytest.raises(RoundError, match="weights"):
        Answerer(FakeAgent(), FakeClock()).answer(task(BAD[case]))


def test_another_handler_than_the_offers_is_refused():
    with pytest.raises(RoundError, match="handler"):
        Answerer(FakeAgent(), FakeClock()).answer(task(WEIGHTS, "evaluate"))


@pytest.mark.parametrize(
    ("agent", "code"), [(FakeAgent("purpose_not_allowed"), "HF-ROUND-001"), (FakeAgent(), "HF-INTERNAL")]
)
def test_an_error_is_answered_with_a_code_and_nothing_else(agent: FakeAgent, code: str, caplog):
    transport = FakeTransport(task(WEIGHTS))

    assert answer_next(transport, Answerer(agent, FakeClock()))

    assert transport.codes == [code]
    assert "nowhere" not in caplog.text
