"""`scorecard.yaml`: read strictly, shown as a table."""

from __future__ import annotations

import json
import sys

import pytest
import yaml
from tests.fakes.evidence_world import DEFINITION, World

from holdfast.errors import FormatError, MissingExtraError
from holdfast.evidence.entries import parse_entries
from holdfast.evidence.layout import parse_json
from holdfast.evidence.scorecard import evaluate, parse_definition
from holdfast.evidence.tally import compute_figures
from holdfast_federation.governance.scorecard import answer, read_definition, render

FIGURES = compute_figures(tuple(parse_entries(World().log)))
TEXT = yaml.safe_dump(DEFINITION)


def test_yaml_is_read_as_the_definition() -> None:
    assert read_definition(TEXT.encode()) == DEFINITION


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("a: 1\na: 2", "'a' twice"),
        ("a: &x [1]\nb: *x", "alias"),
        ("!!python/object/apply:os.system ['true']", "not YAML"),
        ("apiVersion: openslo/v1", "expected exactly the keys"),
        (TEXT + "surplus: 1\n", "surplus"),
        ("x" * 70_000, "at most 65536"),
        ("", "NoneType"),
        ("? [a, b]\n: 1", "scorecard"),
        ("2026-99-99: 1\n? {}\n: 2", "scorecard"),
        ("a: 2026-99-99", "not YAML"),
    ],
    ids=["cut_off", "repeated_key", "alias", "code", "other_kind", "unknown_key", "too_large", "empty", "list_as_key",
         "mapping_as_key", "no_date"],
)  # fmt: skip
def test_yaml_is_refused(text: str, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_definition(text.encode())


def test_yaml_that_is_not_text_is_refused() -> None:
    with pytest.raises(FormatError, match="not YAML"):
        read_definition(b"\xff\xfe\xff")


def test_without_pyyaml_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)

    with pytest.raises(MissingExtraError, match=r"holdfast\[demo\]"):
        read_definition(TEXT.encode())


def test_answer_writes_definition_and_values() -> None:
    scorecard, data = answer(DEFINITION, FIGURES)

    document = parse_json(data, "scorecard.json")
    assert isinstance(document, dict)
    assert document["definition"] == DEFINITION
    assert document["values"] == json.loads(scorecard.to_json())


def test_table_shows_every_kpi_its_interval_and_the_answer() -> None:
    text = render(parse_definition(DEFINITION), evaluate(parse_definition(DEFINITION), FIGURES))

    lines = text.splitlines()
    assert "head of operations" in lines[0]
    accuracy = next(line for line in lines if line.startswith("accuracy"))
    assert "0.65 (0.5816 to 0.7127)" in accuracy
    assert "0.925 (0.88 to 0.954)" in accuracy
    assert "200" in accuracy
    assert "0.2 (declared)" in next(line for line in lines if line.startswith("p99"))
    assert "items = 100000" in text
    assert "? yes" in text
