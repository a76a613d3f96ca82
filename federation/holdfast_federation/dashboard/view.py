"""What the page shows, as rows of plain values, and where it gets them: functions handed in by whoever has the data.

A room that is not there hands in nothing, and its section says so. Times are UTC nanoseconds, durations seconds; the
page turns them into words. Texts may come from devices and are escaped by the template.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """state: "online", "silent", "revoked" or "forked"."""

    device_id: str
    name: str
    site: str
    state: str
    last_seen_utc_ns: int | None
    records: int
    active: Mapping[str, str] = field(default_factory=dict)
    bytes_out: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ServedRow:
    """What a model version did over the fleet within the page's window."""

    model: str
    version: str
    devices: int
    requests: int
    failed: int
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class ModelRow:
    """A published bundle. state: for example "approved" or "waits for approval"."""

    name: str
    version: str
    digest: str
    signed_by: str
    state: str
    devices: int = 0


@dataclass(frozen=True, slots=True)
class RoundRow:
    """A federated run, or its current round."""

    run_id: str
    model: str
    purpose: str
    round: int
    rounds: int
    state: str
    accepted: int
    refused: int
    note: str = ""


@dataclass(frozen=True, slots=True)
class RefusalRow:
    """A device's signed no."""

    device_id: str
    site: str
    run_id: str
    round: int
    reason_code: str
    policy_rule: str
    utc_ns: int


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """The log as it is now."""

    origin: str
    size: int
    root: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything on the page at one moment."""

    utc_ns: int
    devices: Sequence[DeviceRow]
    served: Sequence[ServedRow]
    models: Sequence[ModelRow]
    rounds: Sequence[RoundRow]
    refusals: Sequence[RefusalRow]
    ledger: LedgerRow

    @property
    def online(self) -> int:
        return sum(row.state == "online" for row in self.devices)

    @property
    def requests(self) -> int:
        return sum(row.requests for row in self.served)

    @property
    def failed(self) -> int:
        return sum(row.failed for row in self.served)

    @property
    def sites(self) -> Mapping[str, Mapping[str, int]]:
        """Site -> purpose -> bytes that left it, as its devices counted them."""
        result: dict[str, dict[str, int]] = {}
        for row in self.devices:
            counts = result.setdefault(row.site, {})
            for purpose, count in row.bytes_out.items():
                counts[purpose] = counts.get(purpose, 0) + count
        return {site: dict(sorted(result[site].items())) for site in sorted(result)}


def nothing() -> tuple[()]:
    """The source of a section whose room is not there."""
    return ()


@dataclass(frozen=True, slots=True)
class Sources:
    """Functions that read the rows; each is called once per page."""

    title: str
    now_utc_ns: Callable[[], int]
    devices: Callable[[], Sequence[DeviceRow]]
    served: Callable[[], Sequence[ServedRow]]
    ledger: Callable[[], LedgerRow]
    refusals: Callable[[], Sequence[RefusalRow]] = nothing
    models: Callable[[], Sequence[ModelRow]] = nothing
    rounds: Callable[[], Sequence[RoundRow]] = nothing

    def snapshot(self) -> Snapshot:
        return Snapshot(
            self.now_utc_ns(),
            self.devices(),
            self.served(),
            self.models(),
            self.rounds(),
            self.refusals(),
            self.ledger(),
        )
