"""Runs that start by themselves: every N hours, if enough devices are there. Pure.

[[schedule]]
model = "digits"
purpose = "improve-digits"
every_hours = 24
minimum_devices = 3
quorum = 2
deadline_s = 600
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from holdfast.errors import SettingsError

NS_PER_HOUR = 3_600_000_000_000
MAX_ENTRIES = 64
MAX_HOURS = 8_784.0  # a year


@dataclass(frozen=True, slots=True)
class ScheduledRun:
    """One recurring run. What is not said here is as in `holdfast rounds start`."""

    model: str
    purpose: str
    every_hours: float
    minimum_devices: int = 2
    quorum: int = 2
    deadline_s: float = 300.0
    rounds: int = 8

    @property
    def name(self) -> str:
        """What its last start is remembered under."""
        return f"{self.model}/{self.purpose}"


def read_schedule(tables: Sequence[object]) -> tuple[ScheduledRun, ...]:
    """The `[[schedule]]` tables of the coordinator's settings.

    Raises: SettingsError: an unknown key, a wrong type or range, or two entries for one model and purpose.
    """
    if len(tables) > MAX_ENTRIES:
        raise SettingsError(f"there are {len(tables)} [[schedule]] tables; at most {MAX_ENTRIES} are read")
    entries = tuple(_entry(number, table) for number, table in enumerate(tables, start=1))
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise SettingsError(f"[[schedule]] names {twice[0]} twice; one entry per model and purpose")
    return entries


def next_due(entry: ScheduledRun, last_started_utc_ns: int | None, now_utc_ns: int) -> int:
    """When (UTC, ns) the next start is due; now or earlier means now.

    The first one is due at once. A start that was missed while the coordinator was down is made up for once, not once
    per interval. A clock that was set back waits one interval at most, not until it has caught up.
    """
    if last_started_utc_ns is None:
        return now_utc_ns
    interval_ns = round(entry.every_hours * NS_PER_HOUR)
    return min(last_started_utc_ns + interval_ns, now_utc_ns + interval_ns)


def _entry(number: int, table: object) -> ScheduledRun:
    where = f"[[schedule]] table {number}"
    if not isinstance(table, Mapping):
        raise SettingsError(f"{where} is not a table")
    fields = {field.name: field for field in dataclasses.fields(ScheduledRun)}
    values: dict[str, object] = {}
    for key, value in table.items():
        if key not in fields:
            raise SettingsError(f"unknown setting {key!r} in {where}; known settings: {', '.join(sorted(fields))}")
        values[key] = _checked(where, key, str(fields[key].type), value)
    missing = [name for name in ("model", "purpose", "every_hours") if name not in values]
    if missing:
        raise SettingsError(f"{where} lacks {missing[0]!r}")
    entry = ScheduledRun(**values)  # type: ignore[arg-type]  # each value was checked against its field's type
    if not 0 < entry.every_hours <= MAX_HOURS:
        raise SettingsError(f"every_hours in {where} is {entry.every_hours}; allowed: above 0, at most {MAX_HOURS:g}")
    if not (1 <= entry.quorum <= entry.minimum_devices and entry.deadline_s > 0 and entry.rounds >= 1):
        raise SettingsError(f"{where}: 1 <= quorum <= minimum_devices, deadline_s > 0 and rounds >= 1 must hold")
    return entry


def _checked(where: str, key: str, kind: str, value: object) -> object:
    if kind == "float" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = {"str": str, "int": int, "float": float}[kind]
    if not isinstance(value, expected) or isinstance(value, bool):
        raise SettingsError(f"setting {key!r} in {where} must be a {kind}, got {value!r}")
    return value
