"""What the agent lets its worker do: offers are judged, statements are signed once and only within their offer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from holdfast.errors import FormatError, RoundError
from holdfast.learn.authority import Ground, RoundAuthority, offer_problem, statement_from_fields
from holdfast.policy.evaluate import ALLOWED, NO_DATA, OFFER_INVALID, OFFER_SIGNATURE, UNKNOWN_MODEL, Decision
from holdfast.trust.envelope import Envelope, sign_envelope, verify_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.update.codecs import codec_named
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import OFFER_TYPE, UPDATE_TYPE, PrivacyTerms, RoundAnswer, RoundOffer, UpdateStatement

RUN_KEY, REPORT_KEY, STRANGER = (PrivateKey.generate(ED25519) for _ in range(3))
CODEC = codec_named("int8-block256-stochastic")
OFFER = RoundOffer(
    run_id="run",
    round=1,
    rounds=2,
    purpose="p",
    handler="train",
    model="m",
    base_bundle_digest="d" * 64,
    weights_sha256=bytes(32),
    weights_size_bytes=1200,
    epochs=1,
    batch=8,
    learning_rate=0.1,
    seed=0,
    max_samples=50,
    codec=CODEC.name,
    privacy=PrivacyTerms(clip_norm=1.0),
    issued_utc_ns=1,
    deadline_utc_ns=100,
)


class Bench:
    """An authority with a policy and a ground to turn."""

    def __init__(self) -> None:
        self.decision = ALLOWED
        self.ground: Ground | None = Ground(Path("bundle"), Path("data"), rows=60)
        self.answers: list[RoundAnswer] = []
        self.authority = RoundAuthority(
            "a",
            REPORT_KEY,
            RUN_KEY.public_key,
            lambda offer, signed: self.decision,
            lambda offer: self.ground,
            self.answers.append,
        )

    def offer(self, offer: RoundOffer = OFFER, key: PrivateKey = RUN_KEY) -> RoundAnswer:
        return self.authority.consider(sign_envelope(OFFER_TYPE, to_bytes(offer), key)).answer


def statement_for(answer: RoundAnswer) -> UpdateStatement:
    return UpdateStatement("a", answer.offer_sha256, "run", 1, CODEC.name, bytes(32), 304, 40, {"loss_after": 0.1}, 1.0)


def test_an_offer_that_the_policy_allows_is_taken_and_recorded_once():
    bench = Bench()

    first, second = bench.offer(), bench.offer()

    assert first == second
    assert first.accepted
    assert bench.answers == [first]
    assert bench.authority.is_open(99)
    assert not bench.authority.is_open(100)


def test_a_refusal_carries_the_rule():
    bench = Bench()
    bench.decision = Decision(False, "purpose_not_allowed", "rounds.purposes = none")

    answer = bench.offer()

    assert (answer.accepted, answer.reason_code, answer.policy_rule) == (
        False,
        "purpose_not_allowed",
        "rounds.purposes = none",
    )
    assert not bench.authority.is_open(1)


def test_an_offer_signed_by_another_key_is_refused_and_does_not_block_the_true_one():
    bench = Bench()

    assert bench.offer(key=STRANGER).reason_code == OFFER_SIGNATURE
    assert bench.offer().accepted


def test_a_known_offer_with_a_forged_signature_is_refused():
    bench = Bench()
    bench.offer()

    assert bench.offer(key=STRANGER).reason_code == OFFER_SIGNATURE


def test_an_offer_for_a_model_that_is_not_here_is_refused():
    bench = Bench()
    bench.ground = None

    assert bench.offer().reason_code == UNKNOWN_MODEL


def test_an_offer_without_samples_here_is_refused():
    bench = Bench()
    bench.ground = Ground(Path("bundle"), Path("data"), rows=0)

    assert bench.offer().reason_code == NO_DATA


@pytest.mark.parametrize(
    "change",
    [
        {"handler": "query"},
        {"codec": "morse"},
        {"round": 3},
        {"batch": 0},
        {"max_samples": 0},
        {"weights_size_bytes": 3},
        {"learning_rate": float("nan")},
        {"privacy": PrivacyTerms(clip_norm=1.0, noise_std=1.0)},
    ],
)
def test_an_offer_that_makes_no_sense_is_refused(change):
    offer = dataclasses.replace(OFFER, **change)

    assert offer_problem(offer)
    assert Bench().offer(offer).reason_code == OFFER_INVALID


def test_bytes_that_are_no_offer_are_not_answered():
    bench = Bench()

    with pytest.raises(FormatError):
        bench.authority.consider(Envelope(OFFER_TYPE, b"\xff\xff", ()))
    assert bench.answers == []


def test_a_statement_within_its_offer_is_signed_with_the_report_key():
    bench = Bench()
    statement = statement_for(bench.offer())

    envelope = bench.authority.sign(statement)

    assert verify_envelope(envelope, UPDATE_TYPE, [REPORT_KEY.public_key]).payload == to_bytes(statement)
    assert not bench.authority.is_open(1)


def test_the_same_statement_may_be_signed_again_and_another_one_may_not():
    bench = Bench()
    statement = statement_for(bench.offer())
    bench.authority.sign(statement)

    bench.authority.sign(statement)

    with pytest.raises(RoundError, match="already"):
        bench.authority.sign(dataclasses.replace(statement, sample_count=41))


BROKEN = {
    "other device": {"device_id": "b"},
    "offer not taken": {"offer_sha256": bytes(32)},
    "other run": {"run_id": "x"},
    "other round": {"round": 2},
    "other codec": {"codec": "float32"},
    "no hash": {"array_sha256": b""},
    "too large": {"array_size_bytes": 309},
    "more samples than the offer": {"sample_count": 51},
    "no samples": {"sample_count": 0},
    "unclipped": {"clip_norm_applied": 0.0},
    "clipped too little": {"clip_norm_applied": 1.1},
    "a metric nobody knows": {"metrics": {"row_17": 0.5}},
    "a metric that is no number": {"metrics": {"loss": float("inf")}},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_statement_that_breaks_its_offer_is_not_signed(case: str):
    bench = Bench()
    statement = dataclasses.replace(statement_for(bench.offer()), **BROKEN[case])

    with pytest.raises(RoundError):
        bench.authority.sign(statement)


def test_more_samples_than_the_device_holds_are_not_signed():
    bench = Bench()
    bench.ground = Ground(Path("bundle"), Path("data"), rows=30)

    with pytest.raises(RoundError, match="sample count"):
        bench.authority.sign(statement_for(bench.offer()))


def test_a_refused_offer_is_never_signed_for():
    bench = Bench()
    bench.decision = Decision(False, "no_policy", "")

    with pytest.raises(RoundError, match="did not take"):
        bench.authority.sign(statement_for(bench.offer()))


def test_an_answer_to_an_unsigned_run_names_no_offer_that_no_log_holds():
    bench = Bench()
    wish = dataclasses.replace(OFFER, run_id="unsigned-7")

    taken = bench.authority.consider_unsigned(wish)
    bench.decision = Decision(False, "unsigned_run", "rounds.unsigned_runs = false")
    refused = bench.authority.consider_unsigned(dataclasses.replace(wish, round=2))

    assert [(answer.accepted, answer.offer_sha256) for answer in bench.answers] == [(True, b""), (False, b"")]
    assert taken.offer_sha256 != refused.offer_sha256  # inside the device they are told apart
    assert bench.authority.consider_unsigned(wish) is taken


FIELDS = {
    "offer_sha256": "00" * 32,
    "run_id": "run",
    "round": 1,
    "codec": "float32",
    "array_sha256": "",
    "array_size_bytes": 0,
    "sample_count": 3,
    "metrics": {"loss": 1.0},
    "clip_norm_applied": 0.0,
}


def test_a_statement_is_read_from_the_workers_fields():
    assert statement_from_fields(FIELDS, "a").sample_count == 3


@pytest.mark.parametrize(
    "change",
    [
        {"round": "1"},
        {"round": True},
        {"metrics": [1]},
        {"metrics": {"loss": "x"}},
        {"offer_sha256": "zz"},
        {"more": 1},
    ],
)
def test_fields_that_are_no_statement_are_refused(change):
    with pytest.raises(FormatError):
        statement_from_fields({**FIELDS, **change}, "a")
