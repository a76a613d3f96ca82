"""Models whose labels are numbers: what their devices found is a loss, before a run and after it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from tests.fakes.evidence_world import World, weights_of

from holdfast.cli.main import main
from holdfast.evidence.figures import Figures
from holdfast.evidence.verify import verify_evidence


def judged(losses: Mapping[str, Mapping[str, float]]) -> World:
    """The world with one more evaluation of version 1, of which each device says these numbers."""
    world = World()
    world.evaluate(weights_of(0), losses)
    return world


def figures_of(world: World) -> Figures:
    verdict = verify_evidence(world.export())
    assert verdict.consistent, verdict.findings
    assert verdict.figures is not None
    return verdict.figures


def test_a_loss_is_the_mean_over_all_labels_and_each_devices_last_word_counts() -> None:
    figures = figures_of(judged({"n1": {"loss": 0.5, "count": 100.0}, "s1": {"loss": 2.0, "count": 200.0}}))

    (name,) = figures.losses
    found = figures.losses[name]
    assert name == "digits@1"
    assert (found.loss, found.count, found.devices) == (1.5, 300, {"n1": 0.5, "s1": 2.0})
    assert figures.at("losses/digits@1/loss").value == 1.5
    assert figures.at("losses/@first/loss") == figures.at("losses/@last/loss")
    assert figures.evaluation["digits@1"].accuracy.count == 200  # what was right in the evaluation before it


@pytest.mark.parametrize(
    ("defect", "metrics"),
    [
        ("no_count", {"loss": 1.0}),
        ("no_loss", {"count": 10.0}),
        ("no_labels", {"loss": 1.0, "count": 0.0}),
        ("half_a_label", {"loss": 1.0, "count": 0.5}),
        ("loss_is_nan", {"loss": float("nan"), "count": 10.0}),
        ("more_right_than_there_are", {"loss": 1.0, "count": 10.0, "correct": 11.0}),
    ],
)
def test_what_cannot_be_is_no_loss(defect: str, metrics: dict[str, float]) -> None:
    assert not figures_of(judged({"n1": metrics})).losses


def test_figures_without_losses_are_written_as_before_there_were_any() -> None:
    assert b'"losses"' not in figures_of(World()).to_json()
    assert b'"losses"' in figures_of(judged({"n1": {"loss": 0.5, "count": 100.0}})).to_json()


def test_losses_are_shown_to_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.evidence").write_bytes(judged({"n1": {"loss": 0.25, "count": 100.0}}).export())

    main(["evidence", "verify", str(tmp_path / "run.evidence")])

    assert "digits@1 loss 0.25 over 100 labels" in capsys.readouterr().out
