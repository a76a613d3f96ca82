"""The requests that wait for one model: bounded, by priority, each with its deadline. No threads, no clock, no IO.

Rules: order is by priority, then by arrival. A batch starts with the first that waits and takes along later ones that
may share its run (same model version, same outputs wanted), up to the largest probed batch; others keep their places.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from holdfast.inference.pool import ServedModel
from holdfast.inference.session import RunStop
from holdfast.serving.protocols import Pending

LEVELS = 3  # of priority: 1 before 2 before 3; more would only be names
NORMAL = 2  # of requests that say nothing


@dataclass(slots=True, eq=False)
class Entry:
    """One accepted request, its tensors checked. `rows` is 0 if it may not share a run.

    `model` is what it was accepted for: a swap meanwhile doesn't change it.
    """

    pending: Pending
    model: ServedModel
    rows: int
    size_bytes: int
    alone_s: float | None
    share_s: float
    arrived_s: float
    is_answered: bool = False


class Group:
    """Requests for one model that came in one tick and share a run at once, without waiting in a line.

    What is read for every request lies here ready, so that 32 of them don't look it up 32 times.
    """

    __slots__ = ("alones_s", "largest", "members", "model", "rows", "shared_rows", "shares_s", "total")

    def __init__(self, model: ServedModel) -> None:
        traits = model.session.traits
        self.model = model
        self.shared_rows = model.session.shared_rows
        self.alones_s, self.shares_s = traits.alones_s, traits.shares_s
        self.largest = traits.mixing.buckets[-1] if traits.mixing.is_allowed else 0
        self.members: list[Pending] = []
        self.rows: list[int] = []
        self.total = 0


@dataclass(slots=True, eq=False)
class Line:
    """A model's queue. `running` and `stop` are of the run that a worker is at."""

    name: str
    is_inline: bool
    running: list[Entry] = field(default_factory=list)
    stop: RunStop | None = None
    is_busy: bool = False
    is_ready: bool = False
    waiting: int = 0
    rows: int = 0
    backlog_s: float = 0.0
    _levels: tuple[deque[Entry], ...] = field(default_factory=lambda: tuple(deque() for _ in range(LEVELS)))

    def add(self, entry: Entry) -> None:
        self._levels[level_of(entry.pending.priority)].append(entry)
        self.waiting += 1
        self.rows += entry.rows
        self.backlog_s += entry.share_s

    def take(self) -> list[Entry]:
        """The requests of the next run, no longer waiting; empty if none waits."""
        first = next(iter(self), None)
        if first is None:
            return []
        taken = [first]
        if first.rows and self.waiting > 1:
            rows, wanted, model = first.rows, first.pending.request.outputs, first.model
            largest = model.session.traits.mixing.buckets[-1]
            for entry in self:
                if rows >= largest:
                    break
                if entry is first or entry.model is not model or not 0 < entry.rows <= largest - rows:
                    continue
                if entry.pending.request.outputs == wanted:
                    taken.append(entry)
                    rows += entry.rows
        self._remove(taken)
        return taken

    def take_late(self, now_s: float) -> list[Entry]:
        """Those whose deadline has passed, no longer waiting."""
        late = [entry for entry in self if is_late(entry, now_s)]
        self._remove(late)
        return late

    def take_pending(self, wanted: Collection[int]) -> list[Entry]:
        """Those of these requests (by `id` of their Pending) that wait, no longer waiting."""
        entries = [entry for entry in self if id(entry.pending) in wanted]
        self._remove(entries)
        return entries

    def take_all(self) -> list[Entry]:
        """Everything that waits, no longer waiting."""
        entries = list(self)
        self._remove(entries)
        return entries

    def next_deadline_s(self) -> float | None:
        """The earliest deadline of those that wait or run and have no answer yet."""
        deadlines = (entry.pending.deadline_s for entry in (*self, *self.running) if not entry.is_answered)
        return min((deadline_s for deadline_s in deadlines if deadline_s is not None), default=None)

    def oldest_s(self) -> float | None:
        """When the longest waiting request came."""
        return min((level[0].arrived_s for level in self._levels if level), default=None)

    def company_until_s(self, delay_s: float) -> float:
        """Until when the first request waits for others to share its run; 0 if it need not."""
        mixing = next(iter(self)).model.session.traits.mixing
        oldest_s = self.oldest_s()
        if oldest_s is None or not mixing.is_allowed or self.rows >= mixing.buckets[-1]:
            return 0.0
        return oldest_s + delay_s

    def __iter__(self) -> Iterator[Entry]:
        for level in self._levels:
            yield from level

    def _remove(self, entries: list[Entry]) -> None:
        if not entries:
            return
        gone = set(map(id, entries))
        for level in self._levels:
            # the common case: what goes stands in front
            while level and id(level[0]) in gone:
                gone.discard(id(level.popleft()))
            if gone and level:
                kept = [entry for entry in level if id(entry) not in gone]
                if len(kept) < len(level):
                    level.clear()
                    level.extend(kept)
        self.waiting -= len(entries)
        self.rows -= sum(entry.rows for entry in entries)
        self.backlog_s = max(0.0, self.backlog_s - sum(entry.share_s for entry in entries)) if self.waiting else 0.0


def is_late(entry: Entry, now_s: float) -> bool:
    deadline_s = entry.pending.deadline_s
    return deadline_s is not None and deadline_s <= now_s


def level_of(priority: int) -> int:
    """The level, from 0, of a request's priority; 0 and less mean "not said"."""
    return min(priority if priority > 0 else NORMAL, LEVELS) - 1
