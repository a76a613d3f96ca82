"""Figures: what the signed records add up to, per device, site, fleet, run and evaluated model; and paths into them.

`tally.py` computes them. Computed floats are rounded to nine significant digits, so that another processor's
mathematics library gives the same figures.

Paths (`Figures.at`) go by `/`: `fleet/latency/p99_s`, `sites/<site>/bytes_out/federated`,
`evaluation/<name>@<version>/accuracy`; `evaluation/@first` and `@last` are the evaluated models logged first and last.
So with `losses/<name>@<version>/loss`, for models whose predictions are numbers, and so neither right nor wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from holdfast.errors import FormatError
from holdfast.evidence.layout import canonical_json

SCHEMA = "holdfast/figures/v1"
SIGNIFICANT_DIGITS = 9
FIRST, LAST = "@first", "@last"
WILSON_Z = 1.959963984540054  # two-sided 95 % of the normal distribution


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure with its uncertainty: `n` observations (None: does not apply), and how the interval was made."""

    value: float
    low: float
    high: float
    n: int | None
    method: str


@dataclass(frozen=True, slots=True)
class Share:
    """`hits` of `count`; share is 0 where count is 0."""

    hits: int
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Latency:
    """Merged latencies in seconds; a quantile is off by at most the fraction `relative_error`."""

    count: int
    p50_s: float
    p90_s: float
    p99_s: float
    relative_error: float


@dataclass(frozen=True, slots=True)
class Activity:
    """What was served, sent and refused. `requests`: outcome to count; `refusals`: reason code to count."""

    requests: Mapping[str, int]
    availability: Share
    latency: Latency
    bytes_out: Mapping[str, int]
    refusals: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DeviceFigures:
    """One device. `dropped`: records that tombstones stand for; `unusable`: histograms that contradict themselves."""

    site: str
    records: int
    head_seq: int
    dropped: int
    forks: int
    unusable: int
    activity: Activity


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round as it was recorded; `participants` by device id, with their sample counts."""

    round: int
    outcome: str
    participants: Mapping[str, int]
    sample_count: int
    weights_sha256: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """One federated run. `refusals`: device id to the reason of its last signed no."""

    purpose: str
    rounds: tuple[RoundFigures, ...]
    refusals: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class EvaluationFigures:
    """What devices found on data of their own for one model; each device's last evaluation counts.

    `order` is the entry that logged the model (of its bundle). `loss` is the mean over samples.
    """

    digest: str
    order: int
    accuracy: Share
    loss: float
    devices: Mapping[str, Share]


@dataclass(frozen=True, slots=True)
class LossFigures:
    """What devices found for a model whose labels are numbers: the mean loss over `count` labels, and each device's.

    `digest` and `order` as in `EvaluationFigures`; each device's last evaluation counts.
    """

    digest: str
    order: int
    loss: float
    count: int
    devices: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of one log. `losses` is left out of the JSON while it is empty: older files know nothing of it."""

    entries: Mapping[str, int]
    first_utc_ns: int
    last_utc_ns: int
    fleet: Activity
    sites: Mapping[str, Activity]
    devices: Mapping[str, DeviceFigures]
    runs: Mapping[str, RunFigures]
    evaluation: Mapping[str, EvaluationFigures]
    losses: Mapping[str, LossFigures] = field(default_factory=dict)
    schema: str = SCHEMA

    def to_json(self) -> bytes:
        """The one spelling in which figures are claimed and compared."""
        fields = dataclasses.asdict(self)
        if not self.losses:
            del fields["losses"]
        return canonical_json(fields)

    def at(self, path: str) -> Measured:
        """The figure at `path`, with its 95 % interval.

        Raises:
            FormatError: the path leads nowhere, or not to a number; says where it ended and what is there.
        """
        node: object = self
        parent: object = None
        for step in path.split("/"):
            parent, node = node, _step(node, step, path)
        if isinstance(node, Share):
            low, high = wilson(node.hits, node.count)
            return Measured(node.share, low, high, node.count, "Wilson 95 %")
        if isinstance(node, bool) or not isinstance(node, int | float):
            raise FormatError(f"figure path {path!r} leads to {type(node).__name__}, expected a number")
        value = float(node)
        if isinstance(parent, Latency) and isinstance(node, float):
            low, high = value / (1 + parent.relative_error), value / (1 - parent.relative_error)
            return Measured(value, rounded(low), rounded(high), parent.count, "sketch bound")
        return Measured(value, value, value, None, "exact count")


def wilson(hits: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson 1927, equation 9); (0, 1) where nothing was counted."""
    if count == 0:
        return 0.0, 1.0
    z2 = WILSON_Z * WILSON_Z
    share = hits / count
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = WILSON_Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count)) / (1 + z2 / count)
    return rounded(max(0.0, middle - half)), rounded(min(1.0, middle + half))


def share_of(hits: int, count: int) -> Share:
    """`hits` of `count` as a share."""
    return Share(hits, count, rounded(hits / count) if count else 0.0)


def rounded(value: float) -> float:
    """`value` to nine significant digits."""
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}")


def _step(node: object, step: str, path: str) -> object:
    if isinstance(node, Mapping):
        judged = [each for each in node.values() if isinstance(each, EvaluationFigures | LossFigures)]
        if step in (FIRST, LAST) and judged:
            ordered = sorted(judged, key=lambda each: each.order)
            return ordered[0 if step == FIRST else -1]
        if step in node:
            return node[step]
        known = sorted(node)
    elif dataclasses.is_dataclass(node):
        known = [each.name for each in dataclasses.fields(node)]
        if step in known:
            return getattr(node, step)
    elif isinstance(node, tuple):
        known = [str(number) for number in range(len(node))]
        if step in known:
            return node[int(step)]
    else:
        known = []
    raise FormatError(f"figure path {path!r} ends at {step!r}; there are {', '.join(known)[:300] or 'no parts'}")
