"""Several ways to write the gradient of one node: the first by rule, unless a measurement said otherwise.

A lowering changes how fast a step is and in which order it rounds, never what it computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Choice:
    """Nodes of one form, in which ways they can be written (the rule's own first), and which was taken."""

    where: str
    ways: tuple[str, ...]
    taken: str


class Lowerings:
    """Answers for one build, and keeps what was asked.

    Args:
        measured: by form, the way that is to be taken; forms that don't occur, and ways that don't fit, are left alone.
    """

    def __init__(self, measured: Mapping[str, str] | None = None) -> None:
        self._measured = dict(measured or {})
        self._asked: dict[str, Choice] = {}

    def take(self, where: str, ways: tuple[str, ...]) -> str:
        """The way to write the nodes of this form."""
        measured = self._measured.get(where, "")
        taken = measured if measured in ways else ways[0]
        self._asked[where] = Choice(where, ways, taken)
        return taken

    @property
    def open(self) -> tuple[Choice, ...]:
        """What there was to choose."""
        return tuple(choice for choice in self._asked.values() if len(choice.ways) > 1)
