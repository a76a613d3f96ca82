"""Answers that clients do not take, of all connections together: who has to go when they are too many.

Why, beside the bound that each connection has: a few clients that read nothing would take the memory of a small device
together, each within its own bound.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar


class Holder(Protocol):
    """A connection with answers that wait for its peer."""

    @property
    def untaken_bytes(self) -> int:
        """How much waits."""

    @property
    def taken_s(self) -> float:
        """When its peer took something last, on the monotonic clock."""


H = TypeVar("H", bound=Holder)


def those_to_end(holders: Iterable[H], max_bytes: int, now_s: float) -> list[H]:
    """Those without whom no more than `max_bytes` wait: first who has much waiting, and for long.

    Long is counted from what was last taken, so that who reads a large answer slowly stays, and who reads none goes.
    """
    sizes = {holder: size for holder in holders if (size := holder.untaken_bytes)}
    total, ended = sum(sizes.values()), list[H]()
    if total <= max_bytes:
        return ended
    for holder in sorted(sizes, key=lambda each: (sizes[each] * (now_s - each.taken_s), sizes[each]), reverse=True):
        if total <= max_bytes:
            break
        ended.append(holder)
        total -= sizes[holder]
    return ended
