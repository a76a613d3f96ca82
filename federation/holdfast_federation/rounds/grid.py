"""What the round loop needs of a message carrier; `flower_grid.py` is the one that speaks Flower.

Nothing here is trusted: a reply is only what somebody put into the mailbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Ticket:
    """What it takes to go on with a run after a restart. `token` is a secret: whoever has it controls the run."""

    run_id: int
    task_id: int
    token: str


@dataclass(frozen=True, slots=True)
class Order:
    """One message to one node: the round's weights (float32, little-endian) and the signed offer."""

    node_id: int
    handler: str
    weights: bytes
    offer: bytes
    ttl_s: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for one order. `error` is a code if the node (or the carrier) could not answer."""

    message_id: str
    update: bytes
    statement: bytes
    error: str = ""


class RoundGrid(Protocol):
    """One federated run's mailbox."""

    @property
    def ticket(self) -> Ticket:
        """For the checkpoint."""

    def online(self) -> Mapping[str, int]:
        """Public key (PEM) -> node id of the nodes that are online now."""

    def push(self, orders: Sequence[Order]) -> list[str]:
        """Send; message ids in the same order, "" for one that could not be sent."""

    def pull(self, message_ids: Sequence[str]) -> list[Reply]:
        """The replies that have arrived, each once."""

    def finish(self, *, completed: bool) -> None:
        """Close the run; workers then hear that it is over."""
