"""The step over federated runs: the hashes of their weights make one chain from the base bundle to the candidate.

The first training offer names the weights of its base bundle; each later one the result of the round before; a
candidate's `weights.bin` is a result of the run that its lineage names. What a round says of its participants must be
what the accepted, signed statements say. It does not redo the aggregation: the updates themselves are not logged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from holdfast.evidence.entries import Entry
from holdfast.evidence.findings import Finding, Place
from holdfast.evidence.models import logged_models
from holdfast.wire.messages import RoundOffer, RoundRecord, UpdateStatement

TRAIN, EVALUATE = "train", "evaluate"
AGGREGATED = "aggregated"


@dataclass(slots=True)
class RunFacts:
    """What the log holds about one run; entry positions beside the facts."""

    offers: list[tuple[int, RoundOffer]] = field(default_factory=list)
    rounds: list[tuple[int, RoundRecord]] = field(default_factory=list)
    updates: list[UpdateStatement] = field(default_factory=list)  # the accepted ones that answer a training offer


def collect_runs(entries: Sequence[Entry]) -> dict[str, RunFacts]:
    """The runs by their id, in the order of the log."""
    runs: dict[str, RunFacts] = {}
    training: set[bytes] = set()  # offers by their hash; a run also evaluates, under the number of its last round
    for entry in entries:
        fact = entry.fact
        if isinstance(fact, RoundOffer):
            training |= {entry.payload_sha256} if fact.handler == TRAIN else set()
            runs.setdefault(fact.run_id, RunFacts()).offers.append((entry.index, fact))
        elif isinstance(fact, RoundRecord):
            runs.setdefault(fact.run_id, RunFacts()).rounds.append((entry.index, fact))
        elif (
            isinstance(fact, UpdateStatement)
            and entry.update is not None
            and entry.update.accepted
            and fact.offer_sha256 in training
        ):
            runs.setdefault(fact.run_id, RunFacts()).updates.append(fact)
    return runs


def check_rounds(entries: Sequence[Entry]) -> Iterator[Finding]:
    """The chain of weights of every run holds, and so do the participants and sample counts of every round."""
    runs = collect_runs(entries)
    models = logged_models(entries)
    weights = {model.digest: model.weights_sha256 for model in models if model.weights_sha256}
    for run_id in runs:
        yield from _check_weights(runs[run_id], weights)
        for index, record in runs[run_id].rounds:
            yield from _check_participants(index, record, runs[run_id])
    for model in models:
        run = runs.get(model.run_id)
        if model.run_id and model.weights_sha256:
            results = {record.weights_sha256 for _, record in run.rounds} if run else set()
            if model.weights_sha256 not in results:
                message = (
                    f"candidate {model.label} says it comes from run {model.run_id!r}, no round of it made its weights"
                )
                yield Finding("rounds", message, Place(entry=model.entry, field="weights.bin"))


def _check_weights(run: RunFacts, base_weights: dict[str, bytes]) -> Iterator[Finding]:
    facts: list[tuple[int, RoundOffer | RoundRecord]] = sorted([*run.offers, *run.rounds], key=lambda pair: pair[0])
    current = b""
    for index, fact in facts:
        if isinstance(fact, RoundRecord):
            if fact.outcome == AGGREGATED and fact.weights_sha256:
                current = fact.weights_sha256
        elif fact.handler == TRAIN:
            expected = current or base_weights.get(fact.base_bundle_digest, b"")
            if expected and fact.weights_sha256 != expected:
                message = f"round {fact.round} of {fact.run_id!r} offers weights {fact.weights_sha256.hex()[:16]}, "
                message += f"expected {expected.hex()[:16]}, the result before it"
                yield Finding("rounds", message, Place(entry=index, field="weights_sha256"))
            current = current or fact.weights_sha256


def _check_participants(index: int, record: RoundRecord, run: RunFacts) -> Iterator[Finding]:
    where = f"round {record.round} of {record.run_id!r}"
    offered = any(offer.handler == TRAIN for _, offer in run.offers)
    said = {update.device_id: update.sample_count for update in run.updates if update.round == record.round}
    strangers = sorted(set(record.contributed) - said.keys())
    if strangers and offered:  # a run without offers is a stock Flower app: it leaves no statements
        message = f"{where} counts {strangers[0]}, which has no accepted statement in it"
        yield Finding("rounds", message, Place(entry=index, device_id=strangers[0], field="contributed"))
    uninvited = sorted(set(record.contributed) - set(record.invited))
    if uninvited:
        message = f"{where} counts {uninvited[0]}, which was not invited"
        yield Finding("rounds", message, Place(entry=index, device_id=uninvited[0], field="invited"))
    total = sum(said.get(device_id, 0) for device_id in record.contributed)
    if offered and record.outcome == AGGREGATED and record.sample_count != total:
        message = f"{where} says {record.sample_count} samples, its statements say {total}"
        yield Finding("rounds", message, Place(entry=index, field="sample_count"))
