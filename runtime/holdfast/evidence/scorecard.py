"""A scorecard: declared questions, answered from figures. Was it worth it?

    apiVersion: holdfast/v1            beside OpenSLO's kinds, in its shape
    kind: Scorecard
    metadata: {name: ...}
    spec:
      purpose: ...
      owner: ...
      kpis:
        accuracy:                      name: a-z, 0-9 and _; usable in the formula, also as accuracy_baseline
          definition: ...
          unit: ...
          direction: higher            or lower: which way is better
          baseline: {source: evaluation/@first/accuracy}     or {value: 0.71}, which is then a declared number
          source: evaluation/@last/accuracy                  a path into figures.json
          target: 0.9
      value:
        formula: (accuracy - accuracy_baseline) * items * gain_each - cost
        unit: ...
        threshold: 0                   worth it above this
        inputs: {items: {value: 100000, assumption: ...}}    declared numbers

Figures are derived from signed records; what is declared (targets, baselines by value, inputs, the formula) is the
owner's word. `evaluate` is pure, so that a verifier derives the same values again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from holdfast.errors import FormatError
from holdfast.evidence import formula as arithmetic
from holdfast.evidence.figures import Figures, Measured, rounded
from holdfast.evidence.layout import canonical_json

API_VERSION, KIND = "holdfast/v1", "Scorecard"
HIGHER, LOWER = "higher", "lower"
YES, NO, NOT_SHOWN = "yes", "no", "not shown"  # not shown: the interval leaves both open
BASELINE_SUFFIX = "_baseline"
MAX_KPIS = 32
MAX_TEXT_CHARACTERS = 2_000
MAX_VARYING = 10  # 1,024 corners; a formula over more uncertain values gets no interval

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True, slots=True)
class Kpi:
    """One question. Exactly one of `baseline_source` (a path) and `baseline_value` (declared) is given."""

    name: str
    definition: str
    unit: str
    direction: str
    source: str
    target: float
    baseline_source: str | None
    baseline_value: float | None


@dataclass(frozen=True, slots=True)
class Definition:
    """A scorecard before it is answered."""

    name: str
    purpose: str
    owner: str
    kpis: tuple[Kpi, ...]
    formula: str
    value_unit: str
    threshold: float
    inputs: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class KpiValue:
    """One answer: now and baseline with sample size and 95 % interval, and the hash of what it was derived from."""

    name: str
    baseline: Measured
    now: Measured
    target: float
    reached: bool
    evidence: str


@dataclass(frozen=True, slots=True)
class Scorecard:
    """The answers. `value_low` and `value_high` bound the value over all intervals, None if too many vary."""

    name: str
    kpis: tuple[KpiValue, ...]
    value: float
    value_low: float | None
    value_high: float | None
    worth_it: str
    figures_sha256: str

    def to_json(self) -> bytes:
        return canonical_json(dataclasses.asdict(self))


def parse_definition(document: object) -> Definition:
    """Read a definition from plain values (of YAML or JSON).

    Raises:
        FormatError: a key is missing or unknown, or a value is of the wrong type; says which.
    """
    top = _object(document, {"apiVersion", "kind", "metadata", "spec"}, "scorecard")
    if (top["apiVersion"], top["kind"]) != (API_VERSION, KIND):
        got = f"{top['apiVersion']!s:.60} {top['kind']!s:.60}"
        raise FormatError(f"scorecard is {got}, expected apiVersion {API_VERSION} kind {KIND}")
    metadata = _object(top["metadata"], {"name"}, "metadata")
    spec = _object(top["spec"], {"purpose", "owner", "kpis", "value"}, "spec")
    value = _object(spec["value"], {"formula", "unit", "threshold", "inputs"}, "value")
    listed = spec["kpis"]
    if not isinstance(listed, dict) or not 1 <= len(listed) <= MAX_KPIS:
        raise FormatError(f"scorecard kpis is not a mapping of 1 to {MAX_KPIS} names")
    kpis = tuple(_kpi(_name(name), listed[name]) for name in listed)
    definition = Definition(
        name=_text(metadata["name"], "metadata.name"),
        purpose=_text(spec["purpose"], "purpose"),
        owner=_text(spec["owner"], "owner"),
        kpis=tuple(sorted(kpis, key=lambda kpi: kpi.name)),
        formula=_text(value["formula"], "value.formula"),
        value_unit=_text(value["unit"], "value.unit"),
        threshold=_number(value["threshold"], "value.threshold"),
        inputs=_inputs(value["inputs"]),
    )
    known = {*definition.inputs, *(k.name for k in kpis), *(k.name + BASELINE_SUFFIX for k in kpis)}
    if len(known) != len(definition.inputs) + 2 * len(kpis):
        raise FormatError("scorecard inputs and kpis share a name; give each its own")
    unknown = sorted(set(arithmetic.names_in(definition.formula)) - known)
    if unknown:
        raise FormatError(f"scorecard formula uses {unknown[0]!r}, known are {', '.join(sorted(known))}")
    return definition


def evaluate(definition: Definition, figures: Figures) -> Scorecard:
    """Answer a scorecard.

    Raises:
        FormatError: a source path leads to no figure, or the formula has no value for these figures.
    """
    figures_sha256 = hashlib.sha256(figures.to_json()).hexdigest()
    answers = tuple(_answer(kpi, figures, figures_sha256) for kpi in definition.kpis)
    ranges: dict[str, tuple[float, float, float]] = {
        name: (number, number, number) for name, number in definition.inputs.items()
    }
    for answer in answers:
        ranges[answer.name] = (answer.now.low, answer.now.value, answer.now.high)
        baseline = answer.baseline
        ranges[answer.name + BASELINE_SUFFIX] = (baseline.low, baseline.value, baseline.high)
    value = arithmetic.compute(definition.formula, {name: point for name, (_, point, _) in ranges.items()})
    low, high = _value_range(definition.formula, ranges)
    worth_it = _worth_it(definition, answers, value, low)
    bounds = tuple(None if bound is None else rounded(bound) for bound in (low, high))
    return Scorecard(definition.name, answers, rounded(value), bounds[0], bounds[1], worth_it, figures_sha256)


def _answer(kpi: Kpi, figures: Figures, figures_sha256: str) -> KpiValue:
    now = figures.at(kpi.source)
    if kpi.baseline_source is not None:
        baseline = figures.at(kpi.baseline_source)
    else:
        declared = kpi.baseline_value if kpi.baseline_value is not None else math.nan
        baseline = Measured(declared, declared, declared, None, "declared")
    reached = now.value >= kpi.target if kpi.direction == HIGHER else now.value <= kpi.target
    sources = {"figures_sha256": figures_sha256, "source": kpi.source, "baseline": kpi.baseline_source}
    evidence = hashlib.sha256(canonical_json(sources)).hexdigest()
    return KpiValue(kpi.name, baseline, now, kpi.target, reached, evidence)


def _value_range(formula: str, ranges: Mapping[str, tuple[float, float, float]]) -> tuple[float | None, float | None]:
    """Lowest and highest value over the corners of the intervals: exact for formulas linear in each name."""
    used = arithmetic.names_in(formula)
    varying = [name for name in used if ranges[name][0] != ranges[name][2]]
    if len(varying) > MAX_VARYING:
        return None, None
    points = {name: ranges[name][1] for name in used}
    corners = itertools.product(*((ranges[name][0], ranges[name][2]) for name in varying))
    try:
        values = [arithmetic.compute(formula, points | dict(zip(varying, c, strict=True))) for c in corners]
    except FormatError:  # the point has a value, a corner divides by zero: no bound can be given
        return None, None
    return min(values), max(values)


def _worth_it(definition: Definition, answers: tuple[KpiValue, ...], value: float, low: float | None) -> str:
    if value <= definition.threshold or not all(answer.reached for answer in answers):
        return NO
    return YES if low is not None and low > definition.threshold else NOT_SHOWN


def _kpi(name: str, value: object) -> Kpi:
    what = f"kpi {name}"
    fields = _object(value, {"definition", "unit", "direction", "baseline", "source", "target"}, what)
    if fields["direction"] not in (HIGHER, LOWER):
        raise FormatError(f"{what} has direction {fields['direction']!s:.40}, expected {HIGHER} or {LOWER}")
    baseline = fields["baseline"]
    if not isinstance(baseline, dict) or set(baseline) not in ({"source"}, {"value"}):
        raise FormatError(f"{what} has a baseline without exactly one of 'source' and 'value'")
    return Kpi(
        name=name,
        definition=_text(fields["definition"], f"{what}.definition"),
        unit=_text(fields["unit"], f"{what}.unit"),
        direction=str(fields["direction"]),
        source=_text(fields["source"], f"{what}.source"),
        target=_number(fields["target"], f"{what}.target"),
        baseline_source=_text(baseline["source"], f"{what}.baseline.source") if "source" in baseline else None,
        baseline_value=_number(baseline["value"], f"{what}.baseline.value") if "value" in baseline else None,
    )


def _inputs(value: object) -> dict[str, float]:
    if not isinstance(value, dict) or len(value) > MAX_KPIS:
        raise FormatError(f"scorecard value.inputs is not a mapping of at most {MAX_KPIS} names")
    inputs = {}
    for name in value:
        fields = _object(value[name], {"value", "assumption"}, f"input {name!s:.60}")
        _text(fields["assumption"], f"input {name!s:.60}.assumption")
        inputs[_name(name)] = _number(fields["value"], f"input {name!s:.60}.value")
    return inputs


def _object(value: object, expected: set[str], what: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != expected:
        got = sorted(map(str, value)) if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"scorecard {what} has {str(got)[:200]}, expected exactly the keys {sorted(expected)}")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or _NAME.fullmatch(value) is None or value.endswith(BASELINE_SUFFIX):
        raise FormatError(f"scorecard name {value!s:.60} is not a-z, 0-9 and _, or ends in {BASELINE_SUFFIX}")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_TEXT_CHARACTERS:
        raise FormatError(f"scorecard {what} is not a text of 1 to {MAX_TEXT_CHARACTERS} characters")
    return value


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(f"scorecard {what} is not a number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FormatError(f"scorecard {what} is not a finite number")
    return number
