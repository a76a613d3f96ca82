"""Makes the signed offer of one step of a run. The device does nothing that it does not name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from holdfast.trust.envelope import Envelope, sign_envelope
from holdfast.trust.keys import Signer
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import OFFER_TYPE, PrivacyTerms, RoundOffer
from holdfast_federation.rounds.runs import TRAIN, RunSpec


@dataclass(frozen=True, slots=True)
class SignedOffer:
    """An offer with its exact bytes, and the step it opens. `sha256`: of the payload; answers refer to it."""

    step: str
    offer: RoundOffer
    envelope: bytes
    sha256: bytes

    @classmethod
    def from_envelope(cls, step: str, data: bytes) -> SignedOffer:
        """Read back one that this coordinator made."""
        envelope = from_bytes(Envelope, data)
        return cls(step, from_bytes(RoundOffer, envelope.payload), data, hashlib.sha256(envelope.payload).digest())


def make_offer(
    spec: RunSpec, step: str, number: int, weights: bytes, window_ns: tuple[int, int], signer: Signer
) -> SignedOffer:
    """Offer of round `number` with these weights; `window_ns` = (issued, deadline)."""
    offer = RoundOffer(
        run_id=spec.run_id,
        round=number,
        rounds=spec.rounds,
        purpose=spec.purpose,
        handler="train" if step == TRAIN else "evaluate",
        model=spec.model,
        base_bundle_digest=spec.base_digest,
        weights_sha256=hashlib.sha256(weights).digest(),
        weights_size_bytes=len(weights),
        epochs=spec.epochs if step == TRAIN else 0,
        batch=spec.batch,
        learning_rate=spec.learning_rate if step == TRAIN else 0.0,
        seed=spec.seed + number,
        max_samples=spec.max_samples,
        codec=spec.codec,
        privacy=PrivacyTerms(clip_norm=spec.clip_norm, minimum_cohort=spec.quorum),
        issued_utc_ns=window_ns[0],
        deadline_utc_ns=window_ns[1],
        proximal_mu=spec.proximal_mu if step == TRAIN else 0.0,
        gradient_clip=spec.gradient_clip if step == TRAIN else 0.0,
    )
    payload = to_bytes(offer)
    envelope = to_bytes(sign_envelope(OFFER_TYPE, payload, signer))
    return SignedOffer(step, offer, envelope, hashlib.sha256(payload).digest())
