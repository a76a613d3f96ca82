"""The tally: adds up the log's entries into figures. Pure.

The exporter and the verifier both compute them from the entries alone, and compare every byte. Requests and latencies
come from operational windows and from tombstones (which keep them merged); bytes out are missing for what a tombstone
stands for, so they are a lower bound where `dropped` is not 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from holdfast.errors import FormatError
from holdfast.evidence.chains import sites_of
from holdfast.evidence.entries import FORK, Entry
from holdfast.evidence.figures import (
    Activity,
    DeviceFigures,
    EvaluationFigures,
    Figures,
    Latency,
    LossFigures,
    RoundFigures,
    RunFigures,
    Share,
    rounded,
    share_of,
)
from holdfast.evidence.models import LoggedModel, logged_models
from holdfast.evidence.rounds import EVALUATE, collect_runs
from holdfast.sketch.histogram import ExponentialHistogram, HistogramSnapshot
from holdfast.wire.messages import Counts, Histogram, Report, RoundOffer, RoundRecord, UpdateStatement

OK = "ok"

T = TypeVar("T")


def compute_figures(entries: Sequence[Entry]) -> Figures:
    """Add up the log. Verifies nothing: a verifier checks the entries first."""
    sites = sites_of(entries)
    sums = {device_id: _DeviceSum() for device_id in sites}
    for entry in entries:
        if isinstance(entry.fact, Report):
            sums.setdefault(entry.fact.device_id, _DeviceSum()).add(entry, entry.fact)
    by_site: dict[str, list[_DeviceSum]] = {}
    for device_id in sorted(sums):
        by_site.setdefault(sites.get(device_id, ""), []).append(sums[device_id])
    evaluation, losses = _evaluation(entries)
    times = [entry.recorded_utc_ns for entry in entries] or [0]
    return Figures(
        entries=_sorted(_count(entry.kind for entry in entries)),
        first_utc_ns=min(times),
        last_utc_ns=max(times),
        fleet=_activity(list(sums.values())),
        sites={site: _activity(by_site[site]) for site in sorted(by_site)},
        devices={device_id: sums[device_id].figures(sites.get(device_id, "")) for device_id in sorted(sums)},
        runs=_runs(entries),
        evaluation=evaluation,
        losses=losses,
    )


@dataclass(slots=True)
class _DeviceSum:
    """What one device's records add up to, while they are read."""

    requests: dict[str, int] = field(default_factory=dict)
    latency: ExponentialHistogram = field(default_factory=ExponentialHistogram)
    bytes_out: dict[str, int] = field(default_factory=dict)
    refusals: dict[str, int] = field(default_factory=dict)
    records: int = 0
    head_seq: int = 0
    dropped: int = 0
    forks: int = 0
    unusable: int = 0

    def add(self, entry: Entry, report: Report) -> None:
        if entry.kind == FORK:
            self.forks += 1
            return
        self.records += 1
        self.head_seq = max(self.head_seq, report.seq)
        if report.operational is not None:
            _add(self.bytes_out, report.operational.bytes_out)
            for model in report.operational.models:
                self.add_served(model.outcomes, model.latency_s)
        if report.tombstone is not None:
            self.add_served(report.tombstone.outcomes, report.tombstone.latency_s)
            self.dropped += report.tombstone.last_seq - report.tombstone.first_seq + 1
        if report.round_answer is not None and not report.round_answer.accepted:
            _add(self.refusals, {report.round_answer.reason_code: 1})

    def add_served(self, outcomes: Counts, latency_s: Histogram) -> None:
        _add(self.requests, outcomes)
        try:
            self.latency.merge(_histogram(latency_s))
        except FormatError:
            self.unusable += 1  # signed, and so evidence, but nothing can be computed from it

    def figures(self, site: str) -> DeviceFigures:
        return DeviceFigures(
            site, self.records, self.head_seq, self.dropped, self.forks, self.unusable, _activity([self])
        )


def _activity(sums: Iterable[_DeviceSum]) -> Activity:
    requests: dict[str, int] = {}
    bytes_out: dict[str, int] = {}
    refusals: dict[str, int] = {}
    latency = ExponentialHistogram()
    for each in sums:
        _add(requests, each.requests)
        _add(bytes_out, each.bytes_out)
        _add(refusals, each.refusals)
        latency.merge(each.latency)
    availability = share_of(requests.get(OK, 0), sum(requests.values()))
    return Activity(_sorted(requests), availability, _latency(latency), _sorted(bytes_out), _sorted(refusals))


def _latency(histogram: ExponentialHistogram) -> Latency:
    p50, p90, p99 = (rounded(histogram.quantile(q) or 0.0) for q in (0.5, 0.9, 0.99))
    return Latency(histogram.count, p50, p90, p99, rounded(histogram.relative_error))


def _histogram(sent: Histogram) -> ExponentialHistogram:
    return ExponentialHistogram.from_snapshot(
        HistogramSnapshot(
            scale=sent.scale,
            zero_count=sent.zero_count,
            offset=sent.offset,
            counts=sent.counts,
            sum=sent.sum,
            min=sent.minimum,
            max=sent.maximum,
            count=sent.count,
        )
    )


def _runs(entries: Sequence[Entry]) -> dict[str, RunFigures]:
    refusals: dict[str, dict[str, str]] = {}
    for entry in entries:
        answer = entry.fact.round_answer if isinstance(entry.fact, Report) and entry.kind != FORK else None
        if isinstance(entry.fact, Report) and answer is not None and not answer.accepted:
            refusals.setdefault(answer.run_id, {})[entry.fact.device_id] = answer.reason_code
    runs = collect_runs(entries)
    figures = {}
    for run_id in sorted(runs.keys() | refusals.keys()):
        run = runs.get(run_id)
        rounds = [] if run is None else [_round(record, run.updates) for _, record in run.rounds]
        purpose = run.offers[0][1].purpose if run is not None and run.offers else ""
        figures[run_id] = RunFigures(purpose, tuple(rounds), _sorted(refusals.get(run_id, {})))
    return figures


def _round(record: RoundRecord, updates: Sequence[UpdateStatement]) -> RoundFigures:
    samples = {update.device_id: update.sample_count for update in updates if update.round == record.round}
    participants = {device_id: samples.get(device_id, 0) for device_id in sorted(record.contributed)}
    weights = record.weights_sha256.hex()
    return RoundFigures(record.round, record.outcome, participants, record.sample_count, weights)


def _evaluation(entries: Sequence[Entry]) -> tuple[dict[str, EvaluationFigures], dict[str, LossFigures]]:
    """What was judged: models whose predictions are right or wrong, and those whose labels are numbers."""
    models = {model.digest: model for model in logged_models(entries)}
    by_weights = {model.weights_sha256: model for model in models.values() if model.weights_sha256}
    offers: dict[bytes, RoundOffer] = {}
    rights: dict[tuple[str, int, str], dict[str, tuple[Share, float]]] = {}
    losses: dict[tuple[str, int, str], dict[str, tuple[int, float]]] = {}
    for entry in entries:
        fact = entry.fact
        if isinstance(fact, RoundOffer):
            offers[entry.payload_sha256] = fact
        elif isinstance(fact, UpdateStatement) and entry.update is not None and entry.update.accepted:
            offer = offers.get(fact.offer_sha256)
            if offer is None or offer.handler != EVALUATE:
                continue
            key = _evaluated(offer, models, by_weights, entry.index)
            if (right := _metrics(fact)) is not None:
                rights.setdefault(key, {})[fact.device_id] = right
            elif (loss := _loss(fact)) is not None:
                losses.setdefault(key, {})[fact.device_id] = loss
    return (
        {label: _judged(digest, order, rights[label, order, digest]) for label, order, digest in sorted(rights)},
        {label: _lost(digest, order, losses[label, order, digest]) for label, order, digest in sorted(losses)},
    )


def _evaluated(
    offer: RoundOffer, models: Mapping[str, LoggedModel], by_weights: Mapping[bytes, LoggedModel], index: int
) -> tuple[str, int, str]:
    """(label, order, bundle digest) of what an evaluation offer is about: the bundle of its weights, where known."""
    model = by_weights.get(offer.weights_sha256)
    base = models.get(offer.base_bundle_digest)
    if model is None and base is not None and not base.weights_sha256:
        model = base
    if model is not None and base is not None and base.weights_sha256 == model.weights_sha256:
        model = base  # two bundles may share weights; the offer says which is meant
    if model is not None:
        same_label = [other.digest for other in models.values() if other.label == model.label]
        label = model.label if len(same_label) == 1 else f"{model.label}#{model.digest[:12]}"
        return label, model.entry, model.digest
    label = base.label if base is not None else offer.base_bundle_digest
    return f"{label}~{offer.weights_sha256.hex()[:12]}", base.entry if base else 0, offer.base_bundle_digest


def _metrics(statement: UpdateStatement) -> tuple[Share, float] | None:
    """(correct of count, mean loss); None where the device did not say, or said what cannot be."""
    correct, count = statement.metrics.get("correct", math.nan), statement.metrics.get("count", math.nan)
    loss = statement.metrics.get("loss", 0.0)
    if not (0 <= correct <= count < 2**53 and correct == int(correct) and count == int(count) and math.isfinite(loss)):
        return None
    return share_of(int(correct), int(count)), loss


def _judged(digest: str, order: int, devices: Mapping[str, tuple[Share, float]]) -> EvaluationFigures:
    shares = {device_id: devices[device_id][0] for device_id in sorted(devices)}
    count = sum(share.count for share in shares.values())
    loss = sum(devices[device_id][1] * shares[device_id].count for device_id in shares)
    accuracy = share_of(sum(share.hits for share in shares.values()), count)
    return EvaluationFigures(digest, order, accuracy, rounded(loss / count) if count else 0.0, shares)


def _loss(statement: UpdateStatement) -> tuple[int, float] | None:
    """(labels, mean loss) where labels are numbers, so that a device counts none as right; None as for `_metrics`."""
    metrics = statement.metrics
    count, loss = metrics.get("count", math.nan), metrics.get("loss", math.nan)
    if "correct" in metrics or not (0 < count < 2**53 and count == int(count) and math.isfinite(loss)):
        return None
    return int(count), loss


def _lost(digest: str, order: int, devices: Mapping[str, tuple[int, float]]) -> LossFigures:
    count = sum(labels for labels, _ in devices.values())
    loss = sum(devices[device_id][0] * devices[device_id][1] for device_id in sorted(devices)) / count
    return LossFigures(
        digest,
        order,
        rounded(loss),
        count,
        {device_id: rounded(devices[device_id][1]) for device_id in sorted(devices)},
    )


def _add(total: dict[str, int], counts: Counts) -> None:
    for name, count in counts.items():
        total[name] = total.get(name, 0) + count


def _count(names: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return counts


def _sorted(mapping: Mapping[str, T]) -> dict[str, T]:
    return {name: mapping[name] for name in sorted(mapping)}
