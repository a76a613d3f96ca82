"""How a worker hears of rounds and answers them, whatever carries the messages.

`RoundTransport` is all that the worker knows; `flower_fleet.py` is the one that speaks Flower. `Post` is the line it
speaks over: here a unix socket of the agent, in tests a direct connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]
ConfigValue = int | float | str | bytes | bool


@dataclass(frozen=True, slots=True)
class PostAnswer:
    """What came back from one POST; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Post(Protocol):
    """Carries one request to the SuperLink and brings its answer."""

    def __call__(self, path: str, headers: Mapping[str, str], body: bytes) -> PostAnswer:
        """POST `body` to one of the Fleet paths (`pull-messages`). Raises: OSError: the line is down; try later."""


@dataclass(frozen=True, slots=True)
class RoundTask:
    """One message to a worker. `arrays` keeps the order of the sender; unsigned and unchecked."""

    message_id: str
    run_id: int
    handler: str
    arrays: Arrays
    config: Mapping[str, ConfigValue]


@dataclass(frozen=True, slots=True)
class RoundReply:
    """One answer of a worker."""

    arrays: Arrays = field(default_factory=dict)
    metrics: Mapping[str, int | float] = field(default_factory=dict)
    config: Mapping[str, ConfigValue] = field(default_factory=dict)


class RoundTransport(Protocol):
    """Messages in, replies out. Not safe to share between threads, except `heartbeat`."""

    def activate(self) -> None:
        """Come online. Raises: NodeRefusedError: the key is unknown or revoked."""

    def heartbeat(self) -> None:
        """Say that this worker lives; due every `heartbeat_s`."""

    def next_task(self) -> RoundTask | None:
        """The next message, or None. Raises: RunEndedError: its run ended while it was being fetched."""

    def reply(self, task: RoundTask, reply: RoundReply) -> None:
        """Answer a message. Raises: RunEndedError: too late, its run is over."""

    def reply_error(self, task: RoundTask, code: str) -> None:
        """Answer with an error code. Takes no text: an exception's text could carry data."""

    def is_over(self, run_id: int) -> bool:
        """Whether a run has ended, so that nothing more of it will come."""

    def deactivate(self) -> None:
        """Go offline; never raises for a line that is down."""
