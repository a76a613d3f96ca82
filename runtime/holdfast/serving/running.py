"""Runs requests that were chosen to run together, counts what it cost, and hands out the answers.

Rules: every request of a run gets exactly one answer, whatever goes wrong in the run or with another client. No queue
and no lock: who runs when is the scheduler's. `run_at_once` is for the loop's thread, the rest for any.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from holdfast.clock import Clock
from holdfast.errors import AbandonedError, DeadlineError, HoldfastError, StoppingError
from holdfast.inference.batching import run_together
from holdfast.inference.pool import ModelPool, ServedModel, responses
from holdfast.inference.session import RunStop
from holdfast.inference.tensors import TensorRequest
from holdfast.serving.admission import SchedulerOptions
from holdfast.serving.line import Entry, Group
from holdfast.serving.protocols import Answer, BatchEvent, Pending, SchedulerObserver

logger = logging.getLogger(__name__)

Settled = list[tuple[Entry, Answer]]


class Runner:
    """Runs models of a pool. Thread-safe."""

    def __init__(
        self, pool: ModelPool, clock: Clock, options: SchedulerOptions, observer: SchedulerObserver | None
    ) -> None:
        self._pool, self._clock, self._options, self._observer = pool, clock, options, observer

    def run_at_once(self, batch: Sequence[Pending]) -> list[Pending]:
        """Nothing waits: run what is quick and may share a run, without a queue. Returns the others."""
        now_s = self._clock.monotonic_s()
        left: list[Pending] = []
        groups: dict[tuple[str, str], Group | None] = {}
        runs: list[Group] = []
        left_s, limit_s = self._options.turn_s, self._options.inline_limit_s
        for pending in batch:
            request, deadline_s = pending.request, pending.deadline_s
            key = (request.model, request.version)
            if key not in groups:
                model = self._pool.find(*key)
                groups[key] = None if model is None else Group(model)
            group = groups[key]
            rows = 0 if group is None or request.outputs else group.shared_rows(request.inputs)
            is_on_time = left_s > 0 and (deadline_s is None or deadline_s > now_s)
            if group is None or rows == 0 or not is_on_time or group.alones_s[rows] > limit_s:
                left.append(pending)
                continue
            left_s -= group.shares_s[rows]
            if group.total + rows > group.largest:
                group = groups[key] = Group(group.model)
            if not group.members:
                runs.append(group)
            group.members.append(pending)
            group.rows.append(rows)
            group.total += rows
        for group in runs:
            self._run_group(group, now_s)
        return left

    def run_entries(self, entries: list[Entry], stop: RunStop | None) -> Settled:
        """Run what a line gave together."""
        model, start_s = entries[0].model, self._clock.monotonic_s()
        rows = [entry.rows for entry in entries]
        answers = self._predict(model, [entry.pending.request for entry in entries], rows, stop)
        queue_s = sum(start_s - entry.arrived_s for entry in entries)
        self._count(model, sum(map(_rows_of, entries)), queue_s, start_s, answers)
        return list(zip(entries, answers, strict=True))

    def deliver(self, settled: Settled) -> None:
        """Give answers to those who asked."""
        for entry, answer in settled:
            if self._observer is not None and isinstance(answer, DeadlineError | StoppingError | AbandonedError):
                self._observer.on_refused(entry.model.name, entry.model.version, answer.code)
            _give(entry.pending, answer)

    def refuse(self, pending: Pending, error: HoldfastError) -> None:
        """Answer a request that came into no line."""
        if self._observer is not None:
            self._observer.on_refused(pending.request.model, pending.request.version, error.code)
        _give(pending, error)

    def _run_group(self, group: Group, came_s: float) -> None:
        start_s = self._clock.monotonic_s()
        answers = self._predict(group.model, [pending.request for pending in group.members], group.rows, None)
        self._count(group.model, group.total, (start_s - came_s) * len(answers), start_s, answers)
        for pending, answer in zip(group.members, answers, strict=True):
            _give(pending, answer)

    def _predict(
        self, model: ServedModel, requests: list[TensorRequest], rows: list[int], stop: RunStop | None
    ) -> list[Answer]:
        try:
            return responses(model, requests, run_together(model.session, requests, rows, stop))
        except Exception:  # a door: our bug must cost neither the thread nor anybody's answer
            error_id = os.urandom(8).hex()
            logger.exception("run failed", extra={"error_id": error_id})
            return [HoldfastError(f"internal error; the log holds it under id {error_id}")] * len(requests)

    def _count(self, model: ServedModel, rows: int, queue_s: float, start_s: float, answers: Sequence[Answer]) -> None:
        if self._observer is None:
            return
        took_s = self._clock.monotonic_s() - start_s
        failed = sum(isinstance(answer, HoldfastError) for answer in answers)
        event = BatchEvent(model.name, model.version, len(answers), rows, failed, queue_s, took_s)
        self._observer.on_batch(event)


def too_late() -> DeadlineError:
    """The answer to who is not answered in time."""
    return DeadlineError("the deadline passed before the request was answered")


def settle(entries: Sequence[Entry], error: HoldfastError) -> Settled:
    """Mark those without an answer as answered by `error`. Under the scheduler's lock."""
    open_entries = [entry for entry in entries if not entry.is_answered]
    for entry in open_entries:
        entry.is_answered = True
    return [(entry, error) for entry in open_entries]


def _rows_of(entry: Entry) -> int:
    """The client's rows: `entry.rows` where rows may be shared, else the first input's first dimension."""
    return entry.rows or next((array.shape[0] for array in entry.pending.request.inputs.values() if array.ndim), 1)


def _give(pending: Pending, answer: Answer) -> None:
    try:
        pending.done(answer)
    except Exception:  # a door: one client's connection must not cost the others their answers
        logger.exception("answer could not be handed over")
