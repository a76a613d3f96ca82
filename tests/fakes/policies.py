"""Policies and offers for tests: valid unless a test changes one thing."""

from __future__ import annotations

import dataclasses

from holdfast.policy.rules import Policy, ReportRules, RoundRules
from holdfast.wire.messages import PrivacyTerms, RoundOffer

NOW_UTC_NS = 1_790_000_000_000_000_000  # the start of FakeClock: 2026-09-21T14:13:20Z
DAY_NS = 86_400_000_000_000


def make_policy(**changes: object) -> Policy:
    policy = Policy(
        site="north",
        number=1,
        issued_utc_ns=NOW_UTC_NS,
        expires_utc_ns=NOW_UTC_NS + 30 * DAY_NS,
        reports=ReportRules(operational=True, data=True, minimum_rows=100),
        rounds=RoundRules(
            purposes=("quality",),
            handlers=("train", "evaluate"),
            minimum_cohort=2,
            minimum_rows=50,
            require_clip=True,
            epsilon_budget=4.0,
            maximum_rounds_per_day=10,
        ),
        byte_budgets={"quality": 1_000_000},
    )
    return dataclasses.replace(policy, **changes)  # type: ignore[arg-type]  # names are checked by replace


def make_rounds(**changes: object) -> RoundRules:
    return dataclasses.replace(make_policy().rounds, **changes)  # type: ignore[arg-type]  # as above


def make_offer(**changes: object) -> RoundOffer:
    offer = RoundOffer(
        run_id="run-1",
        round=1,
        rounds=3,
        purpose="quality",
        handler="train",
        model="digits",
        base_bundle_digest="ab" * 32,
        weights_sha256=bytes(32),
        weights_size_bytes=100,
        epochs=1,
        batch=10,
        learning_rate=0.1,
        seed=7,
        max_samples=1000,
        codec="float32",
        privacy=PrivacyTerms(clip_norm=1.0, noise_std=0.0, epsilon=1.0, minimum_cohort=2),
        issued_utc_ns=NOW_UTC_NS,
        deadline_utc_ns=NOW_UTC_NS + DAY_NS,
    )
    return dataclasses.replace(offer, **changes)  # type: ignore[arg-type]  # as above
