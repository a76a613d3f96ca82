"""A site's policy as a value, and its one canonical JSON form.

The policy says what may leave the device, for which purpose, at which cost. Its identity (`policy_digest`) is the
SHA-256 of its canonical payload bytes: keys sorted, no white space, UTF-8. An unknown key is refused, because a rule
that this program does not understand might be the one that forbids. Numbers grow: a newer policy has a higher one.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from holdfast.errors import PolicyError
from holdfast.policy.table import Table
from holdfast.wire.limits import MAX_DOCUMENT_BYTES

SCHEMA = "holdfast/policy/v1"
HANDLERS = ("train", "evaluate")
DEFAULT_MINIMUM_ROWS = 100  # measured: 30 features x 10 bins at n <= 10 reveal whether a person was in the window
MAX_NAMES = 256  # purposes of one policy
MAX_NAME_CHARACTERS = 200
MAX_COUNT = 2**53 - 1  # larger whole numbers do not survive other JSON readers
HOURS_PER_DAY = 24


@dataclass(frozen=True, slots=True)
class ReportRules:
    """What reports may say. `data`: slow windows of bin counts, each over at least `minimum_rows` rows."""

    operational: bool = True
    data: bool = False
    minimum_rows: int = DEFAULT_MINIMUM_ROWS


@dataclass(frozen=True, slots=True)
class RoundRules:
    """Which federated rounds may use the local data. Nothing is allowed by default.

    hours_utc: (from, to) in whole hours, to exclusive, may pass midnight; None = at any time.
    epsilon_budget: privacy loss that all rounds together may cost; None = not limited.
    minimum_rows: the smallest local data set that may answer.
    require_clip: refuse offers that do not bound the norm of the update.
    """

    purposes: tuple[str, ...] = ()
    handlers: tuple[str, ...] = ()
    unsigned_runs: bool = False
    minimum_cohort: int = 2
    minimum_rows: int = DEFAULT_MINIMUM_ROWS
    require_clip: bool = True
    epsilon_budget: float | None = None
    maximum_rounds_per_day: int | None = None
    hours_utc: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules of one site. `byte_budgets`: purpose -> bytes that may leave per UTC day; not named = not limited."""

    site: str
    number: int
    issued_utc_ns: int
    expires_utc_ns: int
    reports: ReportRules = ReportRules()
    rounds: RoundRules = RoundRules()
    byte_budgets: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self)


def to_payload(policy: Policy) -> bytes:
    """The canonical JSON bytes that are signed."""
    rounds: dict[str, object] = {
        "purposes": list(policy.rounds.purposes),
        "handlers": list(policy.rounds.handlers),
        "unsigned_runs": policy.rounds.unsigned_runs,
        "minimum_cohort": policy.rounds.minimum_cohort,
        "minimum_rows": policy.rounds.minimum_rows,
        "require_clip": policy.rounds.require_clip,
        "epsilon_budget": policy.rounds.epsilon_budget,
    }
    if policy.rounds.maximum_rounds_per_day is not None:
        rounds["maximum_rounds_per_day"] = policy.rounds.maximum_rounds_per_day
    if policy.rounds.hours_utc is not None:
        rounds["hours_utc"] = list(policy.rounds.hours_utc)
    document = {
        "schema": SCHEMA,
        "site": policy.site,
        "number": policy.number,
        "issued": format_time(policy.issued_utc_ns),
        "expires": format_time(policy.expires_utc_ns),
        "reports": {
            "operational": policy.reports.operational,
            "data": policy.reports.data,
            "minimum_rows": policy.reports.minimum_rows,
        },
        "rounds": rounds,
        "byte_budgets": dict(policy.byte_budgets),
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def from_payload(payload: bytes) -> Policy:
    """Read a policy payload.

    Raises:
        PolicyError: not JSON, an unknown or missing key, a value out of range, or not the canonical form.
    """
    if len(payload) > MAX_DOCUMENT_BYTES:
        raise PolicyError(f"policy has {len(payload)} bytes; at most {MAX_DOCUMENT_BYTES} are read")
    try:
        document: object = json.loads(payload.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise PolicyError("policy payload is not UTF-8 JSON") from error
    policy = from_mapping(document)
    if to_payload(policy) != payload:
        raise PolicyError("policy payload is not in its canonical form; sign it with: holdfast site sign-policy")
    return policy


def from_mapping(document: object) -> Policy:
    """A policy from plain values, as JSON or TOML gives them.

    Raises:
        PolicyError: an unknown or missing key, or a value of the wrong type or out of range.
    """
    top = Table(document, "policy")
    if top.text("schema") != SCHEMA:
        raise PolicyError(f"policy has the schema {top.text('schema')!r}, expected {SCHEMA!r}; update this program")
    reports = Table(top.take("reports"), "reports")
    rounds = Table(top.take("rounds"), "rounds")
    budgets = top.take("byte_budgets", {})
    if not isinstance(budgets, dict):
        raise PolicyError("policy key 'byte_budgets' must be a table of purpose = bytes per day")
    budget_table = Table(budgets, "byte_budgets")
    policy = Policy(
        site=top.text("site"),
        number=top.whole("number"),
        issued_utc_ns=parse_time(top.text("issued"), "issued"),
        expires_utc_ns=parse_time(top.text("expires"), "expires"),
        reports=_reports(reports),
        rounds=_rounds(rounds),
        byte_budgets={name: budget_table.whole(name) for name in budgets},
    )
    for table in (top, reports, rounds):
        table.require_empty()
    return policy


def policy_digest(payload: bytes) -> str:
    """The identity of a policy: SHA-256 (hex) of its payload bytes."""
    return hashlib.sha256(payload).hexdigest()


def check(policy: Policy) -> None:
    """Refuse values out of range.

    Raises:
        PolicyError: names the key, the value and what is allowed.
    """
    rounds = policy.rounds
    _range("number", policy.number, 1)
    _range("reports.minimum_rows", policy.reports.minimum_rows, 1)
    _range("rounds.minimum_cohort", rounds.minimum_cohort, 1)
    _range("rounds.minimum_rows", rounds.minimum_rows, 1)
    if rounds.maximum_rounds_per_day is not None:
        _range("rounds.maximum_rounds_per_day", rounds.maximum_rounds_per_day, 0)
    for purpose, limit in policy.byte_budgets.items():
        _name("byte_budgets", purpose)
        _range(f"byte_budgets.{purpose}", limit, 0)
    _name("site", policy.site)
    if len(rounds.purposes) > MAX_NAMES or len(policy.byte_budgets) > MAX_NAMES:
        raise PolicyError(f"policy names more than {MAX_NAMES} purposes")
    for purpose in rounds.purposes:
        _name("rounds.purposes", purpose)
    for handler in rounds.handlers:
        if handler not in HANDLERS:
            raise PolicyError(f"policy key 'rounds.handlers' holds {handler!r}; allowed: {', '.join(HANDLERS)}")
    if rounds.epsilon_budget is not None and not (math.isfinite(rounds.epsilon_budget) and rounds.epsilon_budget >= 0):
        raise PolicyError(f"policy key 'rounds.epsilon_budget' is {rounds.epsilon_budget}; allowed: 0 or more, or null")
    if rounds.hours_utc is not None:
        start, end = rounds.hours_utc
        _range("rounds.hours_utc", start, 0, HOURS_PER_DAY - 1)
        _range("rounds.hours_utc", end, 0, HOURS_PER_DAY)
        if start == end:
            raise PolicyError(f"policy key 'rounds.hours_utc' is [{start}, {end}], an empty span; leave it out")
    if policy.expires_utc_ns <= policy.issued_utc_ns:
        raise PolicyError("policy expires before it is issued; give a later 'expires'")


def format_time(utc_ns: int) -> str:
    """A time as RFC 3339 in UTC, whole seconds: 2026-01-31T12:00:00Z."""
    return datetime.fromtimestamp(utc_ns // 1_000_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_time(text: str, key: str) -> int:
    """UTC nanoseconds of a time as `format_time` writes it."""
    try:
        moment = datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        raise PolicyError(f"policy key '{key}' is {text[:40]!r}; expected a time like 2026-01-31T12:00:00Z") from error
    return round(moment.timestamp()) * 1_000_000_000


def _reports(table: Table) -> ReportRules:
    return ReportRules(
        operational=table.flag("operational", default=True),
        data=table.flag("data", default=False),
        minimum_rows=table.whole("minimum_rows", DEFAULT_MINIMUM_ROWS),
    )


def _rounds(table: Table) -> RoundRules:
    hours = table.take("hours_utc", None)
    pair: tuple[int, int] | None = None
    if hours is not None:
        if not isinstance(hours, list) or len(hours) != 2 or not all(type(hour) is int for hour in hours):
            raise PolicyError("policy key 'rounds.hours_utc' must be two whole hours, for example [20, 6]")
        pair = (hours[0], hours[1])
    return RoundRules(
        purposes=table.names("purposes"),
        handlers=table.names("handlers"),
        unsigned_runs=table.flag("unsigned_runs", default=False),
        minimum_cohort=table.whole("minimum_cohort", 2),
        minimum_rows=table.whole("minimum_rows", DEFAULT_MINIMUM_ROWS),
        require_clip=table.flag("require_clip", default=True),
        epsilon_budget=table.number_or_none("epsilon_budget"),
        maximum_rounds_per_day=table.whole_or_none("maximum_rounds_per_day"),
        hours_utc=pair,
    )


def _range(key: str, value: int, minimum: int, maximum: int = MAX_COUNT) -> None:
    if not minimum <= value <= maximum:
        raise PolicyError(f"policy key '{key}' is {value}; allowed: {minimum} .. {maximum}")


def _name(key: str, value: str) -> None:
    if not 1 <= len(value) <= MAX_NAME_CHARACTERS or not value.isprintable():
        raise PolicyError(f"policy key '{key}' holds a name that is empty, too long or not printable: {value[:40]!r}")
