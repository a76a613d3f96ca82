"""The counters of a server in Prometheus text format, made when somebody asks. Pure: counters in, text out.

Rules: names begin with `holdfast_`, units are in the name, label values are escaped. The bounds of the latency buckets
are powers of two, because these are also bounds of the exponential histogram that counted: each cumulative count is
exact. Source: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from holdfast.serving.statistics import NOWHERE, Key, ModelCounts
from holdfast.sketch.histogram import HistogramSnapshot

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LATENCY_BOUNDS_S = tuple(2.0**power for power in range(-16, 5))  # 15 us to 16 s
BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256)

Sample = tuple[str, Mapping[str, str], float]  # suffix of the name, labels, value


@dataclass(frozen=True, slots=True)
class State:
    """Of the whole server. waiting: requests that wait now, by model (a queue is all of its versions).

    refusals: what was refused before it was a request, by layer and reason.
    """

    is_ready: bool
    waiting: Mapping[str, int]
    refusals: Mapping[tuple[str, str], int]


def render(
    counts: Mapping[Key, ModelCounts],
    ready: Iterable[Key],
    version: str,
    state: State,
) -> str:
    """All metrics.

    Args:
        ready: models and versions that are served now.
        version: of this program.
    """
    ready = sorted(ready)
    depths = [("", {"model": name}, float(state.waiting.get(name, 0))) for name in sorted({name for name, _ in ready})]
    known = {key: value for key, value in counts.items() if key != NOWHERE}
    families = [
        _family("holdfast_info", "gauge", "The program that answers.", [("", {"version": version}, 1)]),
        _family("holdfast_ready", "gauge", "1 while requests are welcome.", [("", {}, float(state.is_ready))]),
        _family("holdfast_model_ready", "gauge", "Served models.", [("", _labels(key), 1) for key in ready]),
        _family("holdfast_queue_requests", "gauge", "Requests that wait for a run now.", depths),
        _counter("requests_total", "Requests answered.", known, lambda c: c.requests),
        _family("holdfast_request_errors_total", "counter", "Requests refused or failed, by reason.", _errors(counts)),
        _family("holdfast_peer_refusals_total", "counter", "Refused before it was a request.", _refusals(state)),
        _counter("rows_total", "Rows that models ran on.", known, lambda c: c.rows),
        _counter("runs_total", "Runs of models.", known, lambda c: c.runs),
        _counter("queue_seconds_total", "Time that requests waited for their run.", known, lambda c: c.queue_s),
        _counter("compute_seconds_total", "Time that models ran.", known, lambda c: c.compute_s),
        _family("holdfast_batch_rows", "histogram", "Rows of a run.", _batches(known)),
        _family("holdfast_request_seconds", "histogram", "Time from request to answer.", _latencies(known)),
    ]
    return "".join(line + "\n" for family in families for line in family)


def cumulative(latency: HistogramSnapshot, bounds: Iterable[float]) -> list[int]:
    """How many values were at most as large as each bound; exact where a bound is one of the histogram's own."""
    # bucket i holds (base**i, base**(i+1)], base = 2**(2**-scale)
    uppers = [2.0 ** ((latency.offset + k + 1) * 2.0**-latency.scale) for k in range(len(latency.counts))]
    found = []
    for bound in bounds:
        pairs = zip(uppers, latency.counts, strict=True)
        found.append(latency.zero_count + sum(count for upper, count in pairs if upper <= bound))
    return found


def _counter(
    name: str, text: str, counts: Mapping[Key, ModelCounts], value: Callable[[ModelCounts], float]
) -> Iterator[str]:
    samples = [("", _labels(key), value(counts[key])) for key in sorted(counts)]
    return _family(f"holdfast_{name}", "counter", text, samples)


def _errors(counts: Mapping[Key, ModelCounts]) -> Iterator[Sample]:
    for key in sorted(counts):
        for reason, number in sorted(counts[key].errors.items()):
            yield "", {**_labels(key), "reason": reason}, number


def _refusals(state: State) -> Iterator[Sample]:
    for (layer, reason), number in sorted(state.refusals.items()):
        yield "", {"layer": layer, "reason": reason}, number


def _batches(counts: Mapping[Key, ModelCounts]) -> Iterator[Sample]:
    for key in sorted(counts):
        batches = counts[key].batches
        for bound in BATCH_BOUNDS:
            total = sum(batch.runs for size, batch in batches.items() if size <= bound)
            yield "_bucket", {**_labels(key), "le": str(bound)}, total
        yield "_bucket", {**_labels(key), "le": "+Inf"}, counts[key].runs
        yield "_sum", _labels(key), counts[key].rows
        yield "_count", _labels(key), counts[key].runs


def _latencies(counts: Mapping[Key, ModelCounts]) -> Iterator[Sample]:
    for key in sorted(counts):
        latency = counts[key].latency
        for bound, number in zip(LATENCY_BOUNDS_S, cumulative(latency, LATENCY_BOUNDS_S), strict=True):
            yield "_bucket", {**_labels(key), "le": repr(bound)}, number
        yield "_bucket", {**_labels(key), "le": "+Inf"}, latency.count
        yield "_sum", _labels(key), latency.sum
        yield "_count", _labels(key), latency.count


def _labels(key: Key) -> dict[str, str]:
    return {"model": key[0], "version": key[1]}


def _family(name: str, kind: str, text: str, samples: Iterable[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for suffix, labels, value in samples:
        inside = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        number = repr(value) if isinstance(value, float) and not value.is_integer() else str(int(value))
        yield f"{name}{suffix}{{{inside}}} {number}" if inside else f"{name}{suffix} {number}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
