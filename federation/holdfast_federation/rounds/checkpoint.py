"""Where a run worker is, on disk after every step, so that a kill at any moment loses nothing.

One small JSON file (mode 0600: it holds the task token) names the arrays that belong to it by their hash. Arrays are
written first, the JSON file is replaced last, and what it no longer names is removed after that: every prefix of these
writes is a state to go on from.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from holdfast.errors import StateError
from holdfast.trust.durable import make_folder, remove_leftovers, write_atomic
from holdfast_federation.rounds.grid import Ticket

NAME = "progress.json"


@dataclass(frozen=True, slots=True)
class Progress:
    """weights, sums: SHA-256 (hex) of arrays kept beside. orders: message id -> device, still without a reply.

    offer: hex of the open step's offer hash; empty = the step is not open yet. done: devices that need no order any
    more in this step (contributed, rejected or vanished). contributed: the subset whose update is in `sums`.
    entry: what was found last and may not be in the database yet; entering it twice does no harm.
    absent: devices that did not come online in the last step.
    """

    round: int = 1
    step: str = "train"
    weights: str = ""
    offer: str = ""
    deadline_utc_ns: int = 0
    orders: Mapping[str, str] = field(default_factory=dict)
    done: tuple[str, ...] = ()
    contributed: tuple[str, ...] = ()
    sums: str = ""
    sample_count: int = 0
    contributors: tuple[str, ...] = ()
    total_samples: int = 0
    ticket: Ticket | None = None
    entry: Mapping[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()


class Checkpoints:
    """The checkpoint folder of one run; one process writes it."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        remove_leftovers(folder)
        self._folder = folder

    def load(self) -> Progress | None:
        """The last state; None for a run that has none yet. Raises: StateError: the file is damaged."""
        try:
            fields = json.loads((self._folder / NAME).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise StateError(f"{self._folder / NAME} is damaged; move the folder away to give the run up") from error
        ticket = fields.pop("ticket")
        for name in ("done", "contributed", "contributors", "absent"):
            fields[name] = tuple(fields[name])
        return Progress(**fields, ticket=None if ticket is None else Ticket(**ticket))

    def save(self, progress: Progress, *arrays: bytes) -> None:
        """Make `progress` the state to go on from. `arrays`: those among the named ones that are new."""
        for array in arrays:
            path = self._folder / hashlib.sha256(array).hexdigest()
            if not path.exists():
                write_atomic(path, array)
        write_atomic(self._folder / NAME, json.dumps(dataclasses.asdict(progress), sort_keys=True).encode())
        kept = {NAME, progress.weights, progress.sums}
        for path in self._folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def array(self, digest: str) -> bytes:
        """An array that the state names. Raises: StateError: it is missing or damaged."""
        try:
            data = (self._folder / digest).read_bytes()
        except OSError as error:
            raise StateError(f"checkpoint array {digest[:16]} cannot be read: {error.strerror}") from error
        if hashlib.sha256(data).hexdigest() != digest:
            raise StateError(f"checkpoint array {digest[:16]} is damaged")
        return data

    def remove(self) -> None:
        """Forget everything: the run is over."""
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)
        self._folder.rmdir()


def sha256_hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
