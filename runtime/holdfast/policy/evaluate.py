"""May this leave? May this round use our data? Pure answers with a stable reason and the rule that decided.

No policy, or an expired one, allows no round and no data window; operational reports go on, because a device that
falls silent cannot be told apart from one that broke. The first rule that says no decides, in the order below.
A run that nobody signed can promise no purpose, cohort or clip: `unsigned_runs = true` gives those up, and only those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from holdfast.policy.document import VerifiedPolicy
from holdfast.policy.rules import HOURS_PER_DAY, Policy
from holdfast.wire.messages import RoundOffer

# Stable codes of a refusal: they travel, signed, in a RoundAnswer; never renamed, never reused.
NO_POLICY = "no_policy"
POLICY_EXPIRED = "policy_expired"
UNSIGNED_RUN = "unsigned_run"
OFFER_SIGNATURE = "offer_signature"
OFFER_EXPIRED = "offer_expired"
OFFER_INVALID = "offer_invalid"
PURPOSE_NOT_ALLOWED = "purpose_not_allowed"
HANDLER_NOT_ALLOWED = "handler_not_allowed"
MINIMUM_COHORT = "minimum_cohort"
TOO_FEW_ROWS = "too_few_rows"
OUTSIDE_HOURS = "outside_hours"
ROUNDS_PER_DAY = "rounds_per_day"
CLIP_REQUIRED = "clip_required"
EPSILON_EXHAUSTED = "epsilon_exhausted"
BYTE_BUDGET = "byte_budget"
REPORTS_NOT_ALLOWED = "reports_not_allowed"
UNKNOWN_MODEL = "unknown_model"  # given by the agent: the base bundle of the offer is not on this device
NO_DATA = "no_data"  # given by the agent: the device holds no samples at all
REASON_CODES = frozenset(
    {
        NO_POLICY,
        POLICY_EXPIRED,
        UNSIGNED_RUN,
        OFFER_SIGNATURE,
        OFFER_EXPIRED,
        OFFER_INVALID,
        PURPOSE_NOT_ALLOWED,
        HANDLER_NOT_ALLOWED,
        MINIMUM_COHORT,
        TOO_FEW_ROWS,
        OUTSIDE_HOURS,
        ROUNDS_PER_DAY,
        CLIP_REQUIRED,
        EPSILON_EXHAUSTED,
        BYTE_BUDGET,
        REPORTS_NOT_ALLOWED,
        UNKNOWN_MODEL,
        NO_DATA,
    }
)

ReportKind = Literal["operational", "data"]

NS_PER_HOUR = 3_600_000_000_000


@dataclass(frozen=True, slots=True)
class OfferFacts:
    """What the device knows about itself when an offer arrives.

    signature_holds: None = the offer was not signed at all (a stock Flower run); False = signed, but not by the
    pinned run key. rounds_today, epsilon_spent: what accepted offers of before have cost (today by UTC; ever).
    bytes_today: bytes sent per purpose today; expected_bytes: what answering this offer will send.
    """

    now_utc_ns: int
    local_rows: int
    signature_holds: bool | None = True
    rounds_today: int = 0
    epsilon_spent: float = 0.0
    bytes_today: Mapping[str, int] = field(default_factory=dict)
    expected_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """`rule` names the part of the policy that decided, with its value, in words that hold no data."""

    accepted: bool
    reason_code: str = ""
    rule: str = ""


ALLOWED = Decision(True)


def evaluate_offer(policy: VerifiedPolicy | None, offer: RoundOffer, facts: OfferFacts) -> Decision:
    """Whether the site's policy lets this device take part in the offered round."""
    if facts.signature_holds is False:
        return _no(OFFER_SIGNATURE, "offers are signed by the pinned run key")
    if policy is None:
        return _no(NO_POLICY, "no policy of the site is installed")
    rules = policy.policy
    for decision in (
        _check_validity(rules, offer, facts),
        _check_permission(rules, offer, facts),
        _check_privacy(rules, offer, facts),
        _check_budgets(rules, offer, facts),
    ):
        if not decision.accepted:
            return decision
    return ALLOWED


def may_report(policy: VerifiedPolicy | None, kind: ReportKind, rows: int, *, now_utc_ns: int) -> Decision:
    """Whether a window of this kind over `rows` rows may leave the device."""
    if kind == "operational":
        if policy is None or policy.policy.reports.operational:
            return ALLOWED
        return _no(REPORTS_NOT_ALLOWED, "reports.operational = false")
    if policy is None:
        return _no(NO_POLICY, "no policy of the site is installed")
    if now_utc_ns >= policy.policy.expires_utc_ns:
        return _no(POLICY_EXPIRED, f"policy number {policy.policy.number}")
    if not policy.policy.reports.data:
        return _no(REPORTS_NOT_ALLOWED, "reports.data = false")
    if rows < policy.policy.reports.minimum_rows:
        return _no(TOO_FEW_ROWS, f"reports.minimum_rows = {policy.policy.reports.minimum_rows}")
    return ALLOWED


def _check_validity(policy: Policy, offer: RoundOffer, facts: OfferFacts) -> Decision:
    if facts.now_utc_ns >= policy.expires_utc_ns:
        return _no(POLICY_EXPIRED, f"policy number {policy.number}")
    if facts.signature_holds is None and not policy.rounds.unsigned_runs:
        return _no(UNSIGNED_RUN, "rounds.unsigned_runs = false")
    if facts.now_utc_ns >= offer.deadline_utc_ns:
        return _no(OFFER_EXPIRED, "the deadline of the offer has passed")
    privacy = offer.privacy
    # `not >=` also refuses NaN, which would pass every comparison below
    if not (privacy.clip_norm >= 0 and privacy.noise_std >= 0 and privacy.epsilon >= 0):
        return _no(OFFER_INVALID, "privacy terms are numbers of 0 or more")
    return ALLOWED


def _check_permission(policy: Policy, offer: RoundOffer, facts: OfferFacts) -> Decision:
    rounds = policy.rounds
    if facts.signature_holds is not None and offer.purpose not in rounds.purposes:
        return _no(PURPOSE_NOT_ALLOWED, f"rounds.purposes = {', '.join(rounds.purposes) or 'none'}")
    if offer.handler not in rounds.handlers:
        return _no(HANDLER_NOT_ALLOWED, f"rounds.handlers = {', '.join(rounds.handlers) or 'none'}")
    if rounds.hours_utc is not None and not _within(rounds.hours_utc, facts.now_utc_ns):
        return _no(OUTSIDE_HOURS, f"rounds.hours_utc = {rounds.hours_utc[0]} .. {rounds.hours_utc[1]}")
    if rounds.maximum_rounds_per_day is not None and facts.rounds_today >= rounds.maximum_rounds_per_day:
        return _no(ROUNDS_PER_DAY, f"rounds.maximum_rounds_per_day = {rounds.maximum_rounds_per_day}")
    return ALLOWED


def _check_privacy(policy: Policy, offer: RoundOffer, facts: OfferFacts) -> Decision:
    rounds = policy.rounds
    promised = facts.signature_holds is not None
    if promised and offer.privacy.minimum_cohort < rounds.minimum_cohort:
        return _no(MINIMUM_COHORT, f"rounds.minimum_cohort = {rounds.minimum_cohort}")
    if facts.local_rows < rounds.minimum_rows:
        return _no(TOO_FEW_ROWS, f"rounds.minimum_rows = {rounds.minimum_rows}")
    if promised and rounds.require_clip and offer.handler == "train" and not offer.privacy.clip_norm > 0:
        return _no(CLIP_REQUIRED, "rounds.require_clip = true")
    return ALLOWED


def _check_budgets(policy: Policy, offer: RoundOffer, facts: OfferFacts) -> Decision:
    budget = policy.rounds.epsilon_budget
    if budget is not None and facts.epsilon_spent + offer.privacy.epsilon > budget:
        return _no(EPSILON_EXHAUSTED, f"rounds.epsilon_budget = {budget:g}")
    limit = policy.byte_budgets.get(offer.purpose)
    if limit is not None and facts.bytes_today.get(offer.purpose, 0) + facts.expected_bytes > limit:
        return _no(BYTE_BUDGET, f"byte_budgets.{offer.purpose} = {limit}")
    return ALLOWED


def _within(hours_utc: tuple[int, int], now_utc_ns: int) -> bool:
    hour = now_utc_ns // NS_PER_HOUR % HOURS_PER_DAY
    start, end = hours_utc
    return start <= hour < end if start < end else hour >= start or hour < end


def _no(reason_code: str, rule: str) -> Decision:
    return Decision(False, reason_code, rule)
