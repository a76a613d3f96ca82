"""What the demonstration was asked to do, what it found, and what it claims about that."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.evidence.figures import Figures
from holdfast_federation.demo.traffic import Tally


@dataclass(frozen=True, slots=True)
class Terms:
    """What the run is asked to do, and the seed of everything that is drawn."""

    rounds: int
    epochs: int
    batch: int
    learning_rate: float
    seed: int


@dataclass(frozen=True, slots=True)
class Claim:
    """One sentence about this run of the story, and whether it holds."""

    text: str
    holds: bool


@dataclass(slots=True)
class Record:
    """What was found, for the summary and the checks."""

    first_digest: str = ""
    candidate_digest: str = ""
    candidate_version: str = ""
    holdout_before: float = 0.0
    holdout_after: float = 0.0
    refusal: dict[str, str] = field(default_factory=dict)
    tallies: dict[str, Tally] = field(default_factory=dict)
    figures: Figures | None = None
    evidence: Path | None = None
    verdict: str = ""
    verdict_without_roots: str = ""
    flip_seed: int = 0
    flipped_offset: int = -1
    flip_finding: str = ""
    flip_named: bool = False
    forgery_verdict: str = ""
    forgery_verdict_without_roots: str = ""
    scorecard: dict[str, object] = field(default_factory=dict)


def as_json_text(record: Record, claims: Sequence[Claim], elapsed_s: float) -> str:
    """The record and its claims as one JSON object."""
    fields = {each.name: getattr(record, each.name) for each in dataclasses.fields(record)}
    fields["tallies"] = {name: dataclasses.asdict(tally) for name, tally in record.tallies.items()}
    fields["figures"] = None if record.figures is None else json.loads(record.figures.to_json())
    fields["evidence"] = str(record.evidence)
    fields["claims"] = [dataclasses.asdict(claim) for claim in claims]
    fields["elapsed_s"] = round(elapsed_s, 1)
    return json.dumps(fields, sort_keys=True)
