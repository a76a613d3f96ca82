"""Each way in which an update can be wrong ends in its reason; a good one is taken."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest

from holdfast.trust.envelope import sign_envelope
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.update.codecs import CODECS, LEGALITY, WEIGHTED_MEAN, codec_named
from holdfast.wire.convert import to_bytes
from holdfast.wire.messages import UPDATE_TYPE, UpdateStatement
from holdfast_federation.rounds import verify
from holdfast_federation.rounds.grid import Reply
from holdfast_federation.rounds.offers import SignedOffer, make_offer
from holdfast_federation.rounds.runs import EVALUATE_BASE, TRAIN, RunSpec
from holdfast_federation.rounds.verify import Expected, check_update

COUNT = 300
CODEC = codec_named("int8-block256-stochastic")
SPEC = RunSpec("run", "m", "d" * 64, "p", ("a", "b"), clip_norm=1.0, max_samples=50)
RUN_KEY, DEVICE_KEY, OTHER_KEY = (PrivateKey.generate(ED25519) for _ in range(3))


def offer_of(number: int = 1, step: str = TRAIN) -> SignedOffer:
    return make_offer(SPEC, step, number, b"\0" * 4 * COUNT, (1, 2), RUN_KEY)


def encoded(norm: float = 0.9) -> bytes:
    rng = np.random.default_rng(0)
    delta = rng.standard_normal(COUNT).astype(np.float32)
    return CODEC.encode((delta / np.linalg.norm(delta) * norm).astype(np.float32), rng)


def statement_of(offer: SignedOffer, data: bytes) -> UpdateStatement:
    return UpdateStatement(
        device_id="a",
        offer_sha256=offer.sha256,
        run_id="run",
        round=offer.offer.round,
        codec=CODEC.name,
        array_sha256=hashlib.sha256(data).digest(),
        array_size_bytes=len(data),
        sample_count=40,
        metrics={"loss_after": 0.5},
        clip_norm_applied=1.0,
    )


def found(
    data: bytes, statement: UpdateStatement, *, key: PrivateKey = DEVICE_KEY, offer: SignedOffer | None = None
) -> str:
    offer = offer or offer_of()
    signed = to_bytes(sign_envelope(UPDATE_TYPE, to_bytes(statement), key))
    expected = Expected("a", DEVICE_KEY.public_key, offer.offer, offer.sha256, COUNT)
    return check_update(Reply("1", data, signed), expected).reason_code


def test_a_good_update_is_taken_with_its_values_and_norm():
    data, offer = encoded(), offer_of()
    signed = to_bytes(sign_envelope(UPDATE_TYPE, to_bytes(statement_of(offer, data)), DEVICE_KEY))

    finding = check_update(
        Reply("1", data, signed), Expected("a", DEVICE_KEY.public_key, offer.offer, offer.sha256, COUNT)
    )

    assert finding.accepted
    assert finding.delta is not None
    assert np.array_equal(finding.delta, CODEC.decode(data, COUNT))
    assert finding.norm == pytest.approx(np.linalg.norm(finding.delta), rel=1e-6)


def test_an_update_signed_by_another_device_is_refused():
    data = encoded()

    assert found(data, statement_of(offer_of(), data), key=OTHER_KEY) == verify.SIGNATURE


def test_an_update_replayed_from_another_round_is_refused():
    data = encoded()

    assert found(data, statement_of(offer_of(1), data), offer=offer_of(2)) == verify.OTHER_OFFER


CHANGES = {
    "other device": ({"device_id": "b"}, verify.OTHER_DEVICE),
    "other run": ({"run_id": "another"}, verify.OTHER_ROUND),
    "other round number": ({"round": 7}, verify.OTHER_ROUND),
    "more samples than the bound": ({"sample_count": 51}, verify.SAMPLE_COUNT),
    "no samples": ({"sample_count": 0}, verify.SAMPLE_COUNT),
    "other codec": ({"codec": "float32"}, verify.CODEC),
    "clipped to more": ({"clip_norm_applied": 1.5}, verify.CLIP),
    "not clipped": ({"clip_norm_applied": 0.0}, verify.CLIP),
    "metric that is not a number": ({"metrics": {"loss_after": float("nan")}}, verify.METRICS),
    "wrong size": ({"array_size_bytes": 5}, verify.SIZE),
    "wrong hash": ({"array_sha256": bytes(32)}, verify.HASH),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_statement_that_breaks_its_offer_is_refused(case: str):
    changes, reason = CHANGES[case]
    data = encoded()

    assert found(data, dataclasses.replace(statement_of(offer_of(), data), **changes)) == reason


def test_an_update_with_nan_is_refused():
    data = bytearray(encoded())
    data[:4] = np.float32("nan").tobytes()

    assert found(bytes(data), statement_of(offer_of(), bytes(data))) == verify.VALUES


def test_an_update_of_wrong_length_is_refused():
    data = encoded()[:-1]

    assert found(data, statement_of(offer_of(), data)) == verify.SIZE


def test_an_update_longer_than_its_clip_is_refused():
    data = encoded(norm=3.0)

    assert found(data, statement_of(offer_of(), data)) == verify.NORM


def test_an_evaluation_that_carries_an_array_is_refused():
    offer = offer_of(step=EVALUATE_BASE)
    statement = dataclasses.replace(statement_of(offer, b""), codec="", array_sha256=b"", array_size_bytes=0)

    assert found(b"", statement, offer=offer) == ""
    assert found(b"x", statement, offer=offer) == verify.SIZE


@pytest.mark.parametrize("garbage", [b"", b"\xff" * 40, b"\n\x05"])
def test_bytes_that_are_no_statement_are_refused(garbage: bytes):
    offer = offer_of()
    expected = Expected("a", DEVICE_KEY.public_key, offer.offer, offer.sha256, COUNT)

    assert check_update(Reply("1", encoded(), garbage), expected).reason_code == verify.SIGNATURE


def test_a_device_that_answered_with_a_code_is_reported_with_it():
    offer = offer_of()
    expected = Expected("a", DEVICE_KEY.public_key, offer.offer, offer.sha256, COUNT)

    assert check_update(Reply("1", b"", b"", "HF-MODEL-003"), expected).reason_code == "HF-MODEL-003"


@pytest.mark.parametrize("name", sorted(name for name, aggregation in LEGALITY if aggregation == WEIGHTED_MEAN))
def test_an_update_that_does_not_decode_is_refused_with_every_codec(name: str):
    spec = dataclasses.replace(SPEC, codec=name)
    offer = make_offer(spec, TRAIN, 1, b"\0" * 4 * COUNT, (1, 2), RUN_KEY)
    data = b"\x7f" * CODECS[name].encoded_size(COUNT)
    statement = dataclasses.replace(statement_of(offer, data), codec=name)

    assert found(data, statement, offer=offer) in (verify.VALUES, verify.NORM)
