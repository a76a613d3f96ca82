"""What the demonstration claims, checked: each line follows from what happened, and one false line fails all."""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.evidence.figures import EvaluationFigures
from holdfast_federation.demo.record import Claim, Record
from holdfast_federation.demo.world import World

FIRST_BELOW = 0.85
FEDERATED_AT_LEAST = 0.90
MAX_LOSS_OF_A_DEVICE = 0.02  # points of accuracy on its own hold-out


def claims(record: Record) -> Iterator[Claim]:
    """The claims of the demonstration about this run of it."""
    yield Claim(
        f"version 1 reads less than {FIRST_BELOW:.0%} of the global hold-out: {record.holdout_before:.1%}",
        record.holdout_before < FIRST_BELOW,
    )
    yield Claim(
        f"the federated version reads at least {FEDERATED_AT_LEAST:.0%} of it: {record.holdout_after:.1%}",
        record.holdout_after >= FEDERATED_AT_LEAST,
    )
    before, after = accuracies(record)
    # rounded: in floats 0.88 - 0.90 is less than -0.02
    worst = min((round(after[device] - before[device], 9) for device in before if device in after), default=-1.0)
    complete = bool(before) and before.keys() == after.keys()
    yield Claim(
        f"no device is over {MAX_LOSS_OF_A_DEVICE:.0%} worse on its own hold-out; the worst changed by {worst:+.1%}",
        complete and worst >= -MAX_LOSS_OF_A_DEVICE,
    )
    answered = sum(tally.answered for tally in record.tallies.values())
    failed = sum(tally.failed for tally in record.tallies.values())
    swapped = all(record.candidate_version in tally.versions for tally in record.tallies.values())
    why = next((f" ({tally.first_failure})" for tally in record.tallies.values() if tally.first_failure), "")
    yield Claim(
        f"live traffic: {answered} requests answered, {failed} failed, across the swap on every device{why}",
        answered > 0 and failed == 0 and swapped,
    )
    yield Claim(
        f"the first run was refused by {', '.join(record.refusal) or 'nobody'}, signed, with a reason",
        bool(record.refusal),
    )
    yield Claim(f"the evidence verifies offline: {record.verdict}", record.verdict == "consistent and authenticated")
    yield Claim(
        f"without root keys it proves no origin: {record.verdict_without_roots}",
        record.verdict_without_roots == "consistent, NOT authenticated",
    )
    yield Claim(
        f"one flipped bit at byte {record.flipped_offset} is found and named: {record.flip_finding}",
        record.flip_named,
    )
    yield Claim(
        f"a forgery signed with other keys is refused: {record.forgery_verdict}",
        record.forgery_verdict == "consistent, NOT authenticated",
    )
    yield Claim(
        f"the scorecard answers from that evidence: {record.scorecard.get('worth_it', 'no answer')}",
        record.scorecard.get("worth_it") in ("yes", "no", "not shown"),
    )


def accuracies(record: Record) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy on the device's own hold-out, by device id: of version 1, and of the candidate."""
    evaluations = () if record.figures is None else tuple(record.figures.evaluation.values())
    return _of(evaluations, record.first_digest), _of(evaluations, record.candidate_digest)


def _of(evaluations: tuple[EvaluationFigures, ...], digest: str) -> dict[str, float]:
    found = next((each for each in evaluations if each.digest == digest), None)
    return {} if found is None else {device: share.share for device, share in found.devices.items()}


def table(record: Record, world: World, names: dict[str, str]) -> Iterator[str]:
    """Before and after per device, requests, and what left each site."""
    before, after = accuracies(record)
    yield f"{'device':10} {'before':>8} {'after':>8} {'answered':>9} {'failed':>7}"
    by_name = {name: device_id for device_id, name in names.items()}
    for device in world.devices:
        device_id, tally = by_name.get(device.name, ""), record.tallies[device.name]
        yield (
            f"{device.name:10} {before.get(device_id, 0):8.1%} {after.get(device_id, 0):8.1%} "
            f"{tally.answered:9d} {tally.failed:7d}"
        )
    for site, activity in (record.figures.sites if record.figures else {}).items():
        sent = ", ".join(f"{purpose} {count:,}" for purpose, count in activity.bytes_out.items())
        yield f"bytes that left {site}: {sent}"
