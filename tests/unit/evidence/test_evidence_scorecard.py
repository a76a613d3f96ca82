"""Formulas and scorecards: what is declared is refused unless it is plain, what is derived is derived alike twice."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.evidence_world import DEFINITION, World

from holdfast.errors import FormatError
from holdfast.evidence.entries import parse_entries
from holdfast.evidence.formula import compute, names_in
from holdfast.evidence.scorecard import evaluate, parse_definition
from holdfast.evidence.tally import compute_figures

FIGURES = compute_figures(tuple(parse_entries(World().log)))


def definition(**spec: Any) -> dict[str, Any]:
    document: dict[str, Any] = copy.deepcopy(DEFINITION)
    document["spec"] |= spec
    return document


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("-a / 4", -0.5),
        ("min(a, b) + max(1, b, 3)", 5.0),
        (" a - b", -1.0),
    ],
)
def test_formula_computes(formula: str, value: float) -> None:
    assert compute(formula, {"a": 2.0, "b": 3.0}) == value


@pytest.mark.parametrize(
    "formula",
    [
        "",
        "a +",
        "a ** 9",
        "a if b else 1",
        "a.real",
        "a[0]",
        "[a]",
        "lambda: a",
        "'text'",
        "True",
        "1j",
        "a < b",
        "a // b",
        "a % b",
        "a @ b",
        "~a",
        "unknown",
        "open('x')",
        "__import__('os')",
        "max()",
        "max(a, key=b)",
        "max(*a)",
        "a := 1",
        "1 / 0",
        "1e308 * 10",
        "a; b",
        "+" * 900 + "a",
        "a" * 1_001,
        "+".join("a" * 150),
        "(" * 400 + "a" + ")" * 400,
        "a\x00",
        "9" * 900,
    ],
    ids=lambda formula: formula[:20] or "empty",
)
def test_formula_refuses(formula: str) -> None:
    with pytest.raises(FormatError):
        compute(formula, {"a": 2.0, "b": 3.0})


@given(st.text(alphabet="ab01.+-*/() ,min", max_size=40))
def test_formula_of_any_text_is_a_number_or_an_error(text: str) -> None:
    try:
        assert math.isfinite(compute(text, {"a": 2.0, "b": 0.0}))
    except FormatError:
        pass


def test_formula_names_exclude_functions() -> None:
    assert names_in("max(a, min) + b") == ("a", "b", "min")


def test_scorecard_answers_from_figures() -> None:
    card = evaluate(parse_definition(DEFINITION), FIGURES)

    accuracy, p99 = card.kpis
    assert (accuracy.now.value, accuracy.now.n, accuracy.baseline.value) == (0.925, 200, 0.65)
    assert accuracy.now.low < 0.925 < accuracy.now.high
    assert p99.baseline.method == "declared"
    assert p99.now.low < p99.now.value < p99.now.high
    assert card.value == pytest.approx((0.925 - 0.65) * 100_000 * 2.0 - 5_000)
    assert card.value_low is not None
    assert card.value_high is not None
    assert card.value_low < card.value < card.value_high
    assert card.worth_it == "yes"


def test_scorecard_is_no_where_a_target_is_missed() -> None:
    document = definition()
    document["spec"]["kpis"]["accuracy"]["target"] = 0.99

    card = evaluate(parse_definition(document), FIGURES)

    assert not card.kpis[0].reached
    assert card.worth_it == "no"


def test_scorecard_is_no_where_it_costs_more_than_it_gives() -> None:
    document = definition()
    document["spec"]["value"]["inputs"]["cost"]["value"] = 1_000_000

    assert evaluate(parse_definition(document), FIGURES).worth_it == "no"


def test_scorecard_is_not_shown_where_the_interval_holds_the_threshold() -> None:
    document = definition()
    document["spec"]["value"]["threshold"] = 40_000

    card = evaluate(parse_definition(document), FIGURES)

    assert card.value_low is not None
    assert card.value_low < 40_000 < card.value
    assert card.worth_it == "not shown"


def test_scorecard_direction_lower_reaches_below_its_target() -> None:
    document = definition()
    document["spec"]["kpis"]["p99"]["target"] = 0.001

    assert [kpi.reached for kpi in evaluate(parse_definition(document), FIGURES).kpis] == [True, False]


def test_scorecard_evidence_hash_changes_with_the_figures() -> None:
    world = World()
    world.window("n1", {"ok": 1}, [0.5])
    other = compute_figures(tuple(parse_entries(world.log)))

    one, two = (evaluate(parse_definition(DEFINITION), figures) for figures in (FIGURES, other))

    assert one.kpis[0].evidence != two.kpis[0].evidence
    assert one.figures_sha256 != two.figures_sha256


def _without(*path: str) -> dict[str, Any]:
    document = definition()
    node = document
    for step in path[:-1]:
        node = node[step]
    del node[path[-1]]
    return document


def _with(value: object, *path: str) -> dict[str, Any]:
    document = definition()
    node = document
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "scorecard"),
        (_without("spec", "owner"), "owner"),
        (_with(1, "spec", "surplus"), "surplus"),
        (_with("v2", "apiVersion"), "apiVersion"),
        (_with("sideways", "spec", "kpis", "p99", "direction"), "direction"),
        (_with({"value": 1, "source": "x"}, "spec", "kpis", "p99", "baseline"), "baseline"),
        (_with("soon", "spec", "kpis", "p99", "target"), "number"),
        (_with(True, "spec", "kpis", "p99", "target"), "number"),
        (_with(math.nan, "spec", "kpis", "p99", "target"), "finite"),
        (_with(10**400, "spec", "kpis", "p99", "target"), "finite"),
        (_with({}, "spec", "kpis"), "kpis"),
        (_with(DEFINITION["spec"]["kpis"]["p99"], "spec", "kpis", "P99"), "name"),  # type: ignore[index]
        (_with("profit * 2", "spec", "value", "formula"), "profit"),
        (_with({"value": 1, "assumption": "x"}, "spec", "value", "inputs", "accuracy"), "share a name"),
        (_with({"value": 1}, "spec", "value", "inputs", "items"), "assumption"),
        (_with("", "spec", "purpose"), "purpose"),
    ],
)
def test_scorecard_refuses(document: object, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        parse_definition(document)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("fleet/latency/p100_s", "ends at 'p100_s'"),
        ("fleet", "leads to Activity"),
        ("evaluation/@middle/accuracy", "@middle"),
        ("devices/@first/records", "@first"),
        ("schema", "leads to str"),
        ("runs/run-1/rounds/7", "ends at '7'"),
    ],
)
def test_figure_path_refuses(path: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        FIGURES.at(path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("fleet/requests/ok", 110.0),
        ("fleet/availability", 0.982142857),
        ("devices/n1/head_seq", 7.0),
        ("runs/run-1/rounds/0/sample_count", 200.0),
        ("sites/north/bytes_out/report", 200.0),
        ("evaluation/@first/devices/n1", 0.7),
    ],
)
def test_figure_path_leads_to_a_number(path: str, value: float) -> None:
    assert FIGURES.at(path).value == value
