"""What the accepted offers have cost so far: rounds and bytes today, privacy ever; on disk before the answer leaves.

A site's budgets would be worth nothing if a restart forgot what was spent. Days are UTC days of the device's clock.
An offer is charged when it is accepted, whether or not its update arrives: a budget errs on the side of the site.
"""

from __future__ import annotations

import dataclasses
import json
import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.clock import Clock
from holdfast.errors import StateError
from holdfast.trust.durable import write_atomic
from holdfast.wire.messages import RoundOffer

NS_PER_DAY = 86_400_000_000_000
MAX_FILE_BYTES = 65_536  # 256 purposes of 200 characters


@dataclass(frozen=True, slots=True)
class Spent:
    """day: UTC days since 1970; rounds and bytes (by purpose) of that day; epsilon: of all days."""

    day: int = 0
    rounds: int = 0
    epsilon: float = 0.0
    bytes_out: Mapping[str, int] = field(default_factory=dict)


class Spending:
    """The account of one device. Thread-safe.

    Raises:
        StateError: the file cannot be read or is damaged: then nothing may be spent, because nobody knows how much was.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._lock = threading.Lock()
        self._spent = _read(path)

    def now(self) -> Spent:
        """What counts at this moment."""
        with self._lock:
            return self._today()

    def charge(self, offer: RoundOffer, expected_bytes: int) -> None:
        """Enter an accepted offer durably. Raises StateError if it cannot be written."""
        with self._lock:
            before = self._today()
            bytes_out = dict(before.bytes_out)
            bytes_out[offer.purpose] = bytes_out.get(offer.purpose, 0) + expected_bytes
            after = dataclasses.replace(
                before, rounds=before.rounds + 1, epsilon=before.epsilon + offer.privacy.epsilon, bytes_out=bytes_out
            )
            write_atomic(self._path, json.dumps(dataclasses.asdict(after), sort_keys=True).encode())
            self._spent = after

    def _today(self) -> Spent:
        day = self._clock.utc_ns() // NS_PER_DAY
        # a clock that was set back must not open yesterday's budget again
        return (
            self._spent if day <= self._spent.day else dataclasses.replace(self._spent, day=day, rounds=0, bytes_out={})
        )


def _read(path: Path) -> Spent:
    try:
        with path.open("rb") as file:
            fields = json.loads(file.read(MAX_FILE_BYTES))
        spent = Spent(int(fields["day"]), int(fields["rounds"]), float(fields["epsilon"]), dict(fields["bytes_out"]))
    except FileNotFoundError:
        return Spent()
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise StateError(f"{path} is damaged, so nobody knows what rounds have cost; restore or remove it") from error
    numbers = (spent.day, spent.rounds, *spent.bytes_out.values())
    if not (math.isfinite(spent.epsilon) and spent.epsilon >= 0 and all(type(n) is int and n >= 0 for n in numbers)):
        raise StateError(f"{path} is damaged, so nobody knows what rounds have cost; restore or remove it")
    return spent
