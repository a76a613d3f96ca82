"""The claims of the demonstration: a record that deserves them holds all, and each can fail by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.fakes.evidence_world import World

from holdfast.evidence.entries import parse_entries
from holdfast.evidence.figures import EvaluationFigures, Figures, Share
from holdfast.evidence.tally import compute_figures
from holdfast_federation.demo.record import Record, as_json_text
from holdfast_federation.demo.summary import accuracies, claims
from holdfast_federation.demo.traffic import Tally

FIRST, CANDIDATE = "1" * 64, "2" * 64


def figures(before: Mapping[str, int], after: Mapping[str, int]) -> Figures:
    """Figures of some log, with these hits of 100 per device."""
    plain = compute_figures(tuple(parse_entries(World().log)))
    evaluation = {
        name: EvaluationFigures(
            digest, order, Share(0, 0, 0.0), 0.1, {device: Share(hits, 100, hits / 100) for device, hits in of.items()}
        )
        for order, (name, digest, of) in enumerate((("digits@1", FIRST, before), ("digits@2", CANDIDATE, after)))
    }
    return dataclasses.replace(plain, evaluation=evaluation)


GOOD_FIGURES = figures({"a": 70, "b": 90}, {"a": 95, "b": 88})


def good(**changes: object) -> Record:
    """A record in which everything held, but for the changes."""
    fields: dict[str, object] = {
        "first_digest": FIRST,
        "candidate_digest": CANDIDATE,
        "candidate_version": "1+run-1",
        "holdout_before": 0.849,
        "holdout_after": 0.90,
        "refusal": {"south-1": "purpose_not_allowed: rounds.purposes"},
        "tallies": {name: Tally(500, 0, 450, {"1": 300, "1+run-1": 200}, "") for name in ("north-1", "south-1")},
        "figures": GOOD_FIGURES,
        "evidence": Path("evidence.hf"),
        "verdict": "consistent and authenticated",
        "verdict_without_roots": "consistent, NOT authenticated",
        "flipped_offset": 77,
        "flip_finding": "byte 77 of entries",
        "flip_named": True,
        "forgery_verdict": "consistent, NOT authenticated",
        "scorecard": {"worth_it": "yes"},
    }
    return Record(**(fields | changes))  # type: ignore[arg-type]


def failed(record: Record) -> list[str]:
    return [claim.text for claim in claims(record) if not claim.holds]


def test_a_record_that_deserves_them_holds_all_claims() -> None:
    assert failed(good()) == []
    assert len(list(claims(good()))) == 10


TALLY = good().tallies["north-1"]
# what is changed, and a part of the one claim that then fails
FAILURES: dict[str, tuple[dict[str, object], str]] = {
    "version 1 knew it all": ({"holdout_before": 0.85}, "version 1 reads less than 85%"),
    "the federated version learnt little": ({"holdout_after": 0.899}, "reads at least 90%"),
    "one device is worse": ({"figures": figures({"a": 70, "b": 90}, {"a": 95, "b": 87})}, "no device is over 2%"),
    "one device was not evaluated after": ({"figures": figures({"a": 70, "b": 90}, {"a": 95})}, "no device is over 2%"),
    "one device was not evaluated before": ({"figures": figures({"a": 70}, {"a": 95, "b": 88})}, "no device is over"),
    "nobody was evaluated": ({"figures": figures({}, {})}, "no device is over 2%"),
    "there are no figures": ({"figures": None}, "no device is over 2%"),
    "one request failed": (
        {"tallies": {"a": TALLY, "b": dataclasses.replace(TALLY, failed=1, first_failure="ConnectionError: reset")}},
        "1 failed, across the swap on every device (ConnectionError: reset)",
    ),
    "nothing was asked": ({"tallies": {}}, "0 requests answered"),
    "one device never swapped": (
        {"tallies": {"a": TALLY, "b": dataclasses.replace(TALLY, versions={"1": 500})}},
        "across the swap",
    ),
    "nobody refused": ({"refusal": {}}, "refused by nobody"),
    "the evidence is not authenticated": ({"verdict": "consistent, NOT authenticated"}, "verifies offline"),
    "the evidence is broken": ({"verdict": "NOT consistent"}, "verifies offline"),
    "evidence without roots proves too much": (
        {"verdict_without_roots": "consistent and authenticated"},
        "without root keys",
    ),
    "evidence without roots is broken": ({"verdict_without_roots": "NOT consistent"}, "without root keys"),
    "the flip was not named": ({"flip_named": False}, "one flipped bit at byte 77"),
    "the forgery passed": ({"forgery_verdict": "consistent and authenticated"}, "forgery signed with other keys"),
    "the forgery is clumsy": ({"forgery_verdict": "NOT consistent"}, "forgery signed with other keys"),
    "the scorecard gives no answer": ({"scorecard": {}}, "no answer"),
}


@pytest.mark.parametrize("what", sorted(FAILURES))
def test_claim_fails_when_it_does_not_hold_and_no_other_does(what: str) -> None:
    changes, text = FAILURES[what]

    [said] = failed(good(**changes))

    assert text in said


def test_an_empty_record_holds_next_to_nothing() -> None:
    assert len(failed(Record())) >= 8


def test_accuracies_are_read_by_digest_not_by_order() -> None:
    swapped = dataclasses.replace(GOOD_FIGURES, evaluation=dict(reversed(list(GOOD_FIGURES.evaluation.items()))))

    assert accuracies(good(figures=swapped)) == ({"a": 0.7, "b": 0.9}, {"a": 0.95, "b": 0.88})


def test_json_holds_the_record_and_every_claim() -> None:
    record = good()

    said = json.loads(as_json_text(record, list(claims(record)), 61.23))

    assert said["elapsed_s"] == 61.2
    assert said["evidence"] == "evidence.hf"
    assert [claim["holds"] for claim in said["claims"]] == [True] * 10
    assert set(said) == {field.name for field in dataclasses.fields(Record)} | {"claims", "elapsed_s"}
