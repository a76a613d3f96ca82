"""The merged view of the fleet: what devices reported, added up without averaging averages.

Percentiles come from histograms that were merged bucket by bucket, so they are those of all requests of all devices
(within the histogram's relative error). A window whose histogram does not hold together is left out and counted. All
figures are the devices' own words; that a device said so is what the ledger proves.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast.errors import FormatError
from holdfast.sketch.histogram import ExponentialHistogram
from holdfast.wire.convert import from_bytes
from holdfast.wire.histograms import to_snapshot
from holdfast.wire.messages import Histogram
from holdfast_federation.database import Database

OK = "ok"  # the outcome of a request that was answered
MAX_WINDOWS = 20_000  # newest first; merged in about a second, more needs stored roll-ups


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One model version over all devices that reported it; latencies in seconds, None without a request.

    left_out: windows that could not be read. An empty `model` stands for windows that a device had to drop.
    """

    model: str
    version: str
    bundle_digest: str
    devices: int
    windows: int
    outcomes: Mapping[str, int]
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None
    left_out: int = 0

    @property
    def requests(self) -> int:
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        return self.requests - self.outcomes.get(OK, 0)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A device's signed no to a round offer."""

    device_id: str
    run_id: str
    round: int
    reason_code: str
    policy_rule: str
    received_utc_ns: int


@dataclass(frozen=True, slots=True)
class Reporting:
    """How far a device's chain has come here."""

    device_id: str
    head_seq: int
    received_utc_ns: int
    forks: int


class FleetView:
    """Reads the tables of ingest."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def models(self, since_utc_ns: int = 0) -> tuple[ModelFigures, ...]:
        """Figures per model, version and bundle over the windows received since then, ordered by name.

        Of very many windows only the newest MAX_WINDOWS are merged.
        """
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT * FROM windows WHERE received_utc_ns >= ? ORDER BY received_utc_ns DESC LIMIT ?",
                (since_utc_ns, MAX_WINDOWS),
            ).fetchall()
        groups: dict[tuple[str, str, str], list[sqlite3.Row]] = {}
        for row in rows:
            groups.setdefault((row["model"], row["version"], row["bundle_digest"]), []).append(row)
        return tuple(_figures(key, groups[key]) for key in sorted(groups))

    def traffic(self) -> Mapping[str, Mapping[str, int]]:
        """Device id -> purpose -> bytes that it sent, as it counted them itself."""
        with self._database.read() as cx:
            rows = cx.execute("SELECT * FROM traffic ORDER BY device_id, purpose").fetchall()
        result: dict[str, dict[str, int]] = {}
        for row in rows:
            result.setdefault(row["device_id"], {})[row["purpose"]] = row["bytes"]
        return result

    def refusals(self, limit: int = 50) -> tuple[Refusal, ...]:
        """The newest refusals of round offers first."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT * FROM answers WHERE accepted = 0 ORDER BY received_utc_ns DESC, device_id LIMIT ?", (limit,)
            ).fetchall()
        return tuple(
            Refusal(
                row["device_id"],
                row["run_id"],
                row["round"],
                row["reason_code"],
                row["policy_rule"],
                row["received_utc_ns"],
            )
            for row in rows
        )

    def reporting(self) -> Mapping[str, Reporting]:
        """Device id -> how far its chain has come; devices that never reported are absent."""
        with self._database.read() as cx:
            rows = cx.execute(
                "SELECT device_id, head_seq, received_utc_ns,"
                " (SELECT count(*) FROM forks WHERE forks.device_id = chains.device_id) AS forks FROM chains"
            ).fetchall()
        return {
            row["device_id"]: Reporting(row["device_id"], row["head_seq"], row["received_utc_ns"], row["forks"])
            for row in rows
        }


def _figures(key: tuple[str, str, str], rows: Iterable[sqlite3.Row]) -> ModelFigures:
    merged = ExponentialHistogram()
    outcomes: dict[str, int] = {}
    devices: set[str] = set()
    windows = left_out = 0
    for row in rows:
        try:
            latency = ExponentialHistogram.from_snapshot(to_snapshot(from_bytes(Histogram, bytes(row["latency"]))))
        except FormatError:
            left_out += 1
            continue
        merged.merge(latency)
        for outcome, count in json.loads(row["outcomes"]).items():
            outcomes[outcome] = outcomes.get(outcome, 0) + int(count)
        devices.add(row["device_id"])
        windows += 1
    model, version, digest = key
    return ModelFigures(
        model=model,
        version=version,
        bundle_digest=digest,
        devices=len(devices),
        windows=windows,
        outcomes=dict(sorted(outcomes.items())),
        p50_s=merged.quantile(0.5),
        p90_s=merged.quantile(0.9),
        p99_s=merged.quantile(0.99),
        left_out=left_out,
    )
