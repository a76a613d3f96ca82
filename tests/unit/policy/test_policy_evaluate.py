"""Every rule of a policy can say no, with its own stable code; together they let a fitting offer pass."""

from __future__ import annotations

import dataclasses
import math

import pytest
from tests.fakes.policies import DAY_NS, NOW_UTC_NS, make_offer, make_policy, make_rounds

from holdfast.policy import evaluate
from holdfast.policy.document import VerifiedPolicy, read_policy, sign_policy
from holdfast.policy.evaluate import OfferFacts, evaluate_offer, may_report
from holdfast.policy.rules import Policy, ReportRules
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import PrivacyTerms

FACTS = OfferFacts(now_utc_ns=NOW_UTC_NS, local_rows=500)
HOUR_NS = 3_600_000_000_000


def verified(policy: Policy) -> VerifiedPolicy:
    key = PrivateKey.generate("ed25519")
    return read_policy(sign_policy(policy, key), key.public_key)


def test_an_offer_within_every_rule_is_accepted() -> None:
    decision = evaluate_offer(verified(make_policy()), make_offer(), FACTS)

    assert decision == evaluate.ALLOWED


TERMS = make_offer().privacy
REFUSALS = {
    "offer_signature": (make_policy(), make_offer(), {"signature_holds": False}),
    "policy_expired": (make_policy(), make_offer(), {"now_utc_ns": NOW_UTC_NS + 31 * DAY_NS}),
    "unsigned_run": (make_policy(), make_offer(), {"signature_holds": None}),
    "offer_expired": (make_policy(), make_offer(), {"now_utc_ns": NOW_UTC_NS + DAY_NS}),
    "purpose_not_allowed": (make_policy(), make_offer(purpose="marketing"), {}),
    "handler_not_allowed": (make_policy(rounds=make_rounds(handlers=("evaluate",))), make_offer(), {}),
    "minimum_cohort": (make_policy(rounds=make_rounds(minimum_cohort=3)), make_offer(), {}),
    "too_few_rows": (make_policy(), make_offer(), {"local_rows": 49}),
    "outside_hours": (make_policy(rounds=make_rounds(hours_utc=(15, 20))), make_offer(), {}),
    "rounds_per_day": (make_policy(), make_offer(), {"rounds_today": 10}),
    "clip_required": (make_policy(), make_offer(privacy=dataclasses.replace(TERMS, clip_norm=0.0)), {}),
    "epsilon_exhausted": (make_policy(), make_offer(), {"epsilon_spent": 3.5}),
    "byte_budget": (make_policy(), make_offer(), {"bytes_today": {"quality": 999_000}, "expected_bytes": 1_001}),
    "offer_invalid": (make_policy(), make_offer(privacy=PrivacyTerms(epsilon=math.nan, minimum_cohort=2)), {}),
}


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_a_refusal_names_its_code_and_a_rule(code: str) -> None:
    policy, offer, changes = REFUSALS[code]

    decision = evaluate_offer(verified(policy), offer, dataclasses.replace(FACTS, **changes))

    assert (decision.accepted, decision.reason_code) == (False, code)
    assert decision.rule
    assert code in evaluate.REASON_CODES


def test_without_a_policy_every_offer_is_refused() -> None:
    assert evaluate_offer(None, make_offer(), FACTS).reason_code == "no_policy"


def test_unsigned_runs_pass_only_where_the_site_allows_them() -> None:
    policy = verified(make_policy(rounds=make_rounds(unsigned_runs=True)))

    decision = evaluate_offer(policy, make_offer(), dataclasses.replace(FACTS, signature_holds=None))

    assert decision.accepted


def test_an_unsigned_run_promises_no_purpose_cohort_or_clip_and_needs_none() -> None:
    policy = verified(make_policy(rounds=make_rounds(unsigned_runs=True)))
    offer = make_offer(purpose="unsigned", privacy=PrivacyTerms())

    unsigned = evaluate_offer(policy, offer, dataclasses.replace(FACTS, signature_holds=None))
    signed = evaluate_offer(policy, offer, FACTS)

    assert unsigned.accepted
    assert signed.reason_code == "purpose_not_allowed"


def test_an_evaluation_needs_no_clip() -> None:
    offer = make_offer(handler="evaluate", privacy=PrivacyTerms(minimum_cohort=2))

    assert evaluate_offer(verified(make_policy()), offer, FACTS).accepted


@pytest.mark.parametrize(
    ("hours", "hour", "accepted"),
    [((14, 15), 14, True), ((14, 15), 15, False), ((20, 6), 23, True), ((20, 6), 5, True), ((20, 6), 6, False)],
)
def test_hours_run_from_inclusive_to_exclusive_and_may_pass_midnight(
    hours: tuple[int, int], hour: int, *, accepted: bool
) -> None:
    midnight = NOW_UTC_NS - NOW_UTC_NS % DAY_NS
    facts = OfferFacts(now_utc_ns=midnight + DAY_NS + hour * HOUR_NS, local_rows=500)
    offer = make_offer(deadline_utc_ns=NOW_UTC_NS + 5 * DAY_NS)

    decision = evaluate_offer(verified(make_policy(rounds=make_rounds(hours_utc=hours))), offer, facts)

    assert decision.accepted is accepted


@pytest.mark.parametrize(
    ("reports", "kind", "rows", "code"),
    [
        (ReportRules(data=True, minimum_rows=100), "data", 100, ""),
        (ReportRules(data=True, minimum_rows=100), "data", 99, "too_few_rows"),
        (ReportRules(data=False), "data", 10_000, "reports_not_allowed"),
        (ReportRules(operational=False), "operational", 0, "reports_not_allowed"),
        (ReportRules(operational=True), "operational", 0, ""),
    ],
)
def test_reports_leave_as_the_policy_says(
    reports: ReportRules, kind: evaluate.ReportKind, rows: int, code: str
) -> None:
    decision = may_report(verified(make_policy(reports=reports)), kind, rows, now_utc_ns=NOW_UTC_NS)

    assert (decision.accepted, decision.reason_code) == (code == "", code)


def test_an_expired_policy_stops_data_windows_but_not_the_pulse() -> None:
    policy, later = verified(make_policy()), NOW_UTC_NS + 40 * DAY_NS

    assert may_report(policy, "data", 1000, now_utc_ns=later).reason_code == "policy_expired"
    assert may_report(policy, "operational", 0, now_utc_ns=later).accepted
    assert may_report(None, "data", 1000, now_utc_ns=later).reason_code == "no_policy"
