"""Who may wait for a model: bounds in number, in bytes, in time; refused at once, with a hint when to come back.

Pure: a queue, a request and the limits in, a verdict out. A model at rest takes every request.
"""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import OverloadedError
from holdfast.inference.pool import ServedModel
from holdfast.serving.line import Entry, Line
from holdfast.serving.protocols import Pending


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Bounds of the queues. A model that nobody could time always runs on its worker.

    max_queued: requests that wait for one model.
    max_queued_bytes: inputs of everything that waits or runs off the loop's thread.
    max_wait_s: estimated work in front of a newcomer; more and it is refused.
    delay_s: how long the first of a batch waits for company, on the loop's thread; a worker that is busy lets requests
        gather by itself.
    turn_s: how long the loop's thread runs models before it looks after its connections again.
    """

    max_queued: int = 1_024
    max_queued_bytes: int = 256 * 1024**2
    max_wait_s: float = 10.0
    delay_s: float = 0.0
    inline_limit_s: float = 1e-3  # a hop to a worker and back costs 0.06 ms, so below this it would cost the most
    turn_s: float = 5e-3  # what a connection with nothing to do with it notices least


def entry_for(pending: Pending, model: ServedModel, now_s: float) -> Entry:
    """What the scheduler needs to know of a request: its rows, its size, how long it may take.

    Raises:
        InvalidTensorError: its tensors don't fit the model.
    """
    session, request = model.session, pending.request
    session.check(request.inputs, request.outputs)
    rows = session.shared_rows(request.inputs)
    elements = sum(array.size for array in request.inputs.values())
    size_bytes = sum(array.nbytes for array in request.inputs.values())
    alone_s, share_s = session.traits.alone_s(rows, elements), session.traits.share_s(rows, elements)
    return Entry(pending, model, rows, size_bytes, alone_s, share_s, now_s)


def is_inline(entry: Entry, options: SchedulerOptions) -> bool:
    """Whether a request is quick enough for the loop's thread."""
    return entry.alone_s is not None and entry.alone_s <= options.inline_limit_s


def why_full(line: Line, entry: Entry, held_bytes: int, options: SchedulerOptions) -> OverloadedError | None:
    """Why a request may not wait in `line`; None if it may. `held_bytes` wait or run already, for all models."""
    if not (line.waiting or line.is_busy):
        return None
    before_s, deadline_s = line.backlog_s, entry.pending.deadline_s
    if line.waiting >= options.max_queued:
        reason = f"{line.waiting} requests wait for this model already"
    elif before_s > options.max_wait_s:
        reason = "the requests that wait for this model would take too long"
    elif held_bytes + entry.size_bytes > options.max_queued_bytes:
        reason = "the requests that wait hold too much memory"
    elif deadline_s is not None and before_s > deadline_s - entry.arrived_s:
        reason = "too many requests wait to keep this one's deadline"
    else:
        return None
    return OverloadedError(f"{reason}; try again later", before_s or None)
