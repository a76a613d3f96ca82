"""What a run will do follows from the operator's wish, the author's bundle and the devices that are there."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tests.fakes.trainable_bundles import packed, packed_with

from holdfast.author.pack import TrainingPlan
from holdfast.bundle.verify import read_bundle
from holdfast.errors import RoundError
from holdfast_federation.rounds.offers import make_offer
from holdfast_federation.rounds.runs import EVALUATE_BASE, TRAIN, RunSpec
from holdfast_federation.rounds.start import RunWish, start_run

REGRESSION = TrainingPlan(batch=10, loss="mse", optimizer="adam", proximal_mu=0.1, gradient_clip=2.0)


class Signer:
    """Signs nothing; offers are looked at, not sent."""

    public_key = SimpleNamespace(key_id="k" * 64)

    def sign(self, message: bytes) -> bytes:
        return b"signature"


def started(container: bytes, **wish: object) -> RunSpec:
    bundle = read_bundle(container)
    name, digest = bundle.manifest.name, bundle.digest
    devices = [SimpleNamespace(device_id=each, is_revoked=False, active={name: digest}) for each in ("a", "b")]
    created: list[RunSpec] = []
    store, known = SimpleNamespace(create=created.append), SimpleNamespace(all=lambda: devices)
    start_run(RunWish(name, "improve", **wish), store, known, lambda asked: container)
    return created[0]


def test_a_run_uses_the_authors_numbers_unless_the_operator_says_others() -> None:
    container = packed_with(REGRESSION)

    authors = started(container)
    others = started(container, proximal_mu=0.0, gradient_clip=5.0)

    assert (authors.proximal_mu, authors.gradient_clip) == (0.1, 2.0)
    assert (others.proximal_mu, others.gradient_clip) == (0.0, 5.0)


def test_an_offer_to_learn_carries_them_and_one_to_judge_does_not() -> None:
    spec = started(packed_with(REGRESSION))

    learn, judge = (make_offer(spec, step, 1, b"1234", (1, 2), Signer()).offer for step in (TRAIN, EVALUATE_BASE))

    assert (learn.proximal_mu, learn.gradient_clip) == (0.1, 2.0)
    assert (judge.proximal_mu, judge.gradient_clip) == (0.0, 0.0)


@pytest.mark.parametrize(("wish", "flag"), [("proximal_mu", "--proximal-mu"), ("gradient_clip", "--clip-norm")])
def test_a_wish_that_the_graphs_cannot_fulfil_is_refused(wish: str, flag: str) -> None:
    with pytest.raises(RoundError, match=f"pack it again with {flag}"):
        started(packed(), **{wish: 0.5})
    assert getattr(started(packed(), **{wish: 0.0}), wish) == 0.0
