"""The corpus of architectures: what stands in its result, and, in an environment with torch, that it is still so."""

from __future__ import annotations

import json

import pytest
from tests.corpus.torch_process import in_torch_environment
from tests.docs.corpus_table import findings, is_file, shares
from tests.vectors.autodiff.cases import OPERATOR_CASES

RULE_TOLERANCE = 1e-5  # as for the golden vectors
LEAST_SHARE = 0.95


def test_corpus_has_forty_architectures_of_several_sources_and_most_train() -> None:
    found = findings()

    files, verified, names, train = shares(found)

    assert names >= 40
    assert len({each["source"] for each in found}) >= 4
    assert verified / files >= LEAST_SHARE
    assert train / names >= LEAST_SHARE


def test_every_refusal_names_a_node_and_the_way_out() -> None:
    refused = [each for each in findings() if is_file(each) and not each["verified"]]

    for each in refused:
        assert "node" in str(each["refusal"]), each
        assert "Error:" not in str(each["refusal"]), each  # an error of somebody else's that nobody put into words


def test_what_is_called_verified_was_compared() -> None:
    for each in findings():
        assert each["built"] or not each["verified"], each
        assert not each["verified"] or each["error"] is not None, each


@pytest.mark.slow
@pytest.mark.parametrize("group", ["images", "sequences", "pretrained", "written"])
def test_corpus_is_still_what_its_result_says(group: str) -> None:
    run = in_torch_environment("tests.corpus.make_corpus", ["--check", group])

    assert run.returncode == 0, run.stdout + run.stderr[-3000:]


@pytest.mark.slow
def test_every_rule_gives_the_gradient_of_torch_on_new_numbers() -> None:
    run = in_torch_environment("tests.corpus.live_rules")

    assert run.returncode == 0, run.stderr[-3000:]
    errors = json.loads(run.stdout)
    assert set(errors) == {case.name for case in OPERATOR_CASES}
    assert {name: error for name, error in errors.items() if error > RULE_TOLERANCE} == {}
