"""Decides when a request runs, on which thread and with whom: the queues between the fronts and the models.

Rules:
- A request that takes less than `inline_limit_s`, as measured when its model was loaded, runs on the loop's thread at
  once; others on the one worker thread of their model. What arrives in one tick shares a run where the model's mixing
  verdict allows it; an idle server waits for nobody unless `delay_s` says so.
- Every request gets exactly one answer, the same that it would get alone. It is refused at the door when the queue is
  full, or so long that its deadline cannot be kept; once accepted it is answered, by DeadlineError if its time is over.
  A run for which nobody waits any more is ended.
- A request stays with the model version it was accepted for: a swap fails nobody.
- On the loop's thread models take turns, a run each, and after `turn_s` the loop gets its thread back.
- No answer is kept: the same bytes twice are computed twice.

Not here: the runs themselves (`running.py`), decoding, taps, authorisation.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from holdfast.clock import Clock
from holdfast.errors import AbandonedError, DeadlineError, HoldfastError, StoppingError
from holdfast.inference.pool import ModelPool, ServedModel
from holdfast.inference.session import RunStop
from holdfast.inference.tensors import Array, TensorRequest
from holdfast.serving.admission import SchedulerOptions, entry_for, is_inline, why_full
from holdfast.serving.line import Entry, Line, is_late
from holdfast.serving.protocols import Answer, BatchEvent, OnLeave, Pending, SchedulerObserver
from holdfast.serving.running import Runner, Settled, settle, too_late
from holdfast.serving.shell import Shell, ThreadShell, Worker

Post = Callable[[Callable[[], None]], None]

WAIT_S = 3600.0  # a caller of `run` looks up from its wait this often


class ModelScheduler:
    """The queues of all models of a pool. Thread-safe.

    `post` hands a callback to the loop's thread, in order; answers from workers are given there. Without a loop it may
    call at once, on whatever thread it is.
    """

    def __init__(
        self,
        pool: ModelPool,
        clock: Clock,
        post: Post,
        *,
        options: SchedulerOptions | None = None,
        observer: SchedulerObserver | None = None,
        shell: Shell | None = None,
    ) -> None:
        self._pool, self._clock, self._post = pool, clock, post
        self._options = options or SchedulerOptions()
        self.inline_limit_s, self.turn_s = self._options.inline_limit_s, self._options.turn_s
        self._observer = observer
        self._runner = Runner(pool, clock, self._options, observer)
        self._shell = shell or ThreadShell(clock)
        self._alarm = self._shell.alarm(self._on_alarm)
        self._lock = threading.Lock()
        self._lines: dict[tuple[str, bool], Line] = {}
        self._workers: dict[str, Worker] = {}
        self._ready: deque[Line] = deque()
        self._held_bytes = 0
        self._is_turning = False
        self._is_stopping = False
        self._idle = threading.Event()

    def submit(self, batch: Sequence[Pending]) -> None:
        """Take what arrived in one tick of the loop. On the loop's thread."""
        left = batch
        if not (self._ready or self._is_turning or self._is_stopping or self._options.delay_s > 0):
            self._is_turning = True  # an answer may make somebody ask again; that request waits for its turn
            try:
                left = self._runner.run_at_once(batch)
            finally:
                self._is_turning = False
        if left:
            quick = self._accept(left)
            with self._lock:
                for entry in quick:
                    self._enqueue(entry)
        self._turn()

    def find_free(self, name: str, version: str) -> ServedModel | None:
        """A model, if nothing waits in front of it. On the loop's thread."""
        if self._ready or self._is_turning or self._is_stopping or self._options.delay_s > 0:
            return None
        return self._pool.find(name, version)

    def find_quick(self, name: str, version: str) -> ServedModel | None:
        """A model whose rows may share a run, if nothing waits in front of it. On the loop's thread."""
        model = self.find_free(name, version)
        return model if model is not None and model.session.traits.mixing.is_allowed else None

    def run_quick(
        self,
        model: ServedModel,
        inputs: Mapping[str, Array],
        wanted: tuple[str, ...],
        rows: Sequence[int],
        came_s: Sequence[float],
    ) -> Mapping[str, Array] | None:
        """Run requests that were joined and checked. On the loop's thread.

        Returns: the outputs of all rows, padding included; None if the run failed, and each must be tried alone.
        """
        start_s = self._clock.monotonic_s()
        try:
            outputs = model.session.run_checked(inputs, wanted)
        except (HoldfastError, MemoryError):
            return None
        if self._observer is not None:
            count = len(rows)
            queue_s = start_s * count - sum(came_s)
            took_s = self._clock.monotonic_s() - start_s
            self._observer.on_batch(BatchEvent(model.name, model.version, count, sum(rows), 0, queue_s, took_s))
        return outputs

    def run(
        self,
        requests: Sequence[TensorRequest],
        deadline_s: float | None = None,
        *,
        priority: int = 0,
        on_leave: OnLeave | None = None,
    ) -> list[Answer]:
        """Answer requests in their order, on the caller's thread or while it waits. Not for the loop's thread."""
        answers: list[Answer | None] = [None] * len(requests)
        all_given = threading.Event()

        def give(place: int, answer: Answer) -> None:
            answers[place] = answer
            if None not in answers:
                all_given.set()

        asked = [Pending(each, deadline_s, partial(give, at), priority) for at, each in enumerate(requests)]
        here = Line("", is_inline=True)
        for entry in self._accept(asked):
            here.add(entry)
        if on_leave is not None:
            on_leave(lambda: self.abandon(asked))
        while entries := here.take():
            self._runner.deliver(self._runner.run_entries(entries, None))
        while requests and not self._clock.wait(all_given, WAIT_S):
            pass
        if on_leave is not None:
            on_leave(None)
        return [answer for answer in answers if answer is not None]

    def abandon(self, asked: Sequence[Pending]) -> None:
        """Nobody waits for these any more: those that wait leave their line, a run for them alone is ended.

        From any thread. What was answered before stays answered.
        """
        wanted = set(map(id, asked))
        settled: Settled = []
        with self._lock:
            for line in self._lines.values():
                waiting = line.take_pending(wanted)
                self._let_go(waiting)
                running = [entry for entry in line.running if id(entry.pending) in wanted]
                settled += settle(waiting + running, AbandonedError("the client left before its answer"))
                if line.stop is not None and all(entry.is_answered for entry in line.running):
                    line.stop.set()
            self._note_idle()
        self._hand_over(settled)

    def waiting(self) -> dict[str, int]:
        """How many requests wait now, by model; those that run are not among them."""
        found: dict[str, int] = {}
        with self._lock:
            for (name, _), line in self._lines.items():
                found[name] = found.get(name, 0) + line.waiting
        return found

    def drain(self) -> None:
        """Refuse new requests from now on; those accepted go on."""
        with self._lock:
            self._is_stopping = True
            self._note_idle()

    def stop(self, deadline_s: float) -> None:
        """Drain, give what was accepted `deadline_s` seconds, then end it. Not on the loop's thread."""
        self.drain()
        self._clock.wait(self._idle, deadline_s)
        self.close()

    def close(self) -> None:
        """Answer everything that still waits or runs with StoppingError, and end the runs."""
        settled: Settled = []
        with self._lock:
            self._is_stopping = True
            for line in self._lines.values():
                waiting = line.take_all()
                self._let_go(waiting)
                left = waiting + [entry for entry in line.running if not entry.is_answered]
                settled += settle(left, StoppingError("the server is stopping; the request was not run to its end"))
                if line.stop is not None:
                    line.stop.set()
        self._alarm.close()
        self._hand_over(settled)

    def _accept(self, batch: Sequence[Pending]) -> list[Entry]:
        """Put requests in their lines, or refuse them. Returns those that are quick, which are in no line yet."""
        now_s = self._clock.monotonic_s()
        refused: list[tuple[Pending, HoldfastError]] = []
        idle: list[Line] = []
        quick: list[Entry] = []
        with self._lock:
            for pending in batch:
                entry = self._admit(pending, now_s)
                if isinstance(entry, HoldfastError):
                    refused.append((pending, entry))
                elif is_inline(entry, self._options):
                    quick.append(entry)
                else:
                    line = self._enqueue(entry)
                    if not line.is_busy:
                        line.is_busy = True
                        idle.append(line)
        for line in idle:
            self._start(line)
        for pending, error in refused:
            self._runner.refuse(pending, error)
        return quick

    def _admit(self, pending: Pending, now_s: float) -> Entry | HoldfastError:
        """An entry for a request, or why it is refused."""
        if self._is_stopping:
            return StoppingError("the server is stopping; ask another one, or again in a moment")
        request = pending.request
        try:
            entry = entry_for(pending, self._pool.get(request.model, request.version), now_s)
        except HoldfastError as error:
            return error
        if is_late(entry, now_s):
            return DeadlineError("the deadline passed before the request was started")
        line = self._lines.get((entry.model.name, is_inline(entry, self._options)))
        full = None if line is None else why_full(line, entry, self._held_bytes, self._options)
        return full or entry

    def _enqueue(self, entry: Entry) -> Line:
        key = (entry.model.name, is_inline(entry, self._options))
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = Line(*key)
        line.add(entry)
        self._held_bytes += entry.size_bytes
        if line.is_inline:
            self._make_ready(line, entry.arrived_s)
        elif entry.pending.deadline_s is not None:
            self._alarm.at(entry.pending.deadline_s)
        return line

    def _make_ready(self, line: Line, now_s: float) -> None:
        """Put an inline line among those that take turns, unless its first request still waits for company."""
        if line.is_ready or not line.waiting:
            return
        if self._options.delay_s > 0 and (until_s := line.company_until_s(self._options.delay_s)) > now_s:
            self._alarm.at(until_s)
            return
        line.is_ready = True
        self._ready.append(line)

    def _turn(self) -> None:
        """Run what is ready on this, the loop's, thread; each model a run, until `turn_s` is over."""
        if self._is_turning:  # an answer made somebody ask again
            return
        self._is_turning = True
        try:
            until_s = self._clock.monotonic_s() + self._options.turn_s
            while self._ready:
                self._run_next()
                if self._ready and self._clock.monotonic_s() >= until_s:
                    self._post(self._turn)
                    break
        finally:
            self._is_turning = False

    def _run_next(self) -> None:
        now_s = self._clock.monotonic_s()
        with self._lock:
            line = self._ready.popleft()
            line.is_ready = False
            late = line.take_late(now_s)
            entries = line.take()
            self._let_go(late + entries)
            settled = settle(late, too_late())
            self._make_ready(line, now_s)
        self._runner.deliver(settled)
        if entries:
            self._runner.deliver(self._runner.run_entries(entries, None))
        if self._is_stopping:
            with self._lock:
                self._note_idle()

    def _start(self, line: Line) -> None:
        worker = self._workers.get(line.name)
        if worker is None:
            worker = self._workers[line.name] = self._shell.worker(line.name)
        worker.start(partial(self._work, line))

    def _work(self, line: Line) -> None:
        """On the worker's thread: run what waits until nothing does."""
        answers: Settled = []
        while True:
            settled = self._next_run(line, answers)
            entries, stop = line.running, line.stop
            # last of all: the loop's thread, which gets them, and this one want the interpreter at the same time
            self._hand_over(settled)
            if not entries:
                return
            del answers, settled  # they hold a model, which may be unloaded during the next run
            answers = self._runner.run_entries(entries, stop)

    def _next_run(self, line: Line, answers: Settled) -> Settled:
        """End a worker's run and begin the next one, of what waits. Returns what is answered now."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            self._let_go(line.running)
            settled = [(entry, answer) for entry, answer in answers if not entry.is_answered]
            for entry, _ in settled:
                entry.is_answered = True
            late = line.take_late(now_s)
            line.running = line.take()
            line.stop = RunStop() if line.running else None
            line.is_busy = bool(line.running)
            self._let_go(late)
            self._note_idle()
            return settled + settle(late, too_late())

    def _on_alarm(self) -> None:
        """On the alarm's thread: answer who is late, end runs that nobody waits for, wake lines that waited long."""
        now_s = self._clock.monotonic_s()
        settled: Settled = []
        wake = False
        with self._lock:
            for line in self._lines.values():
                late = line.take_late(now_s)
                self._let_go(late)
                settled += settle(late + [entry for entry in line.running if is_late(entry, now_s)], too_late())
                if line.stop is not None and all(entry.is_answered for entry in line.running):
                    line.stop.set()
                if line.is_inline:
                    self._make_ready(line, now_s)
                    wake = wake or line.is_ready
                elif (next_s := line.next_deadline_s()) is not None:
                    self._alarm.at(next_s)
            self._note_idle()
        self._hand_over(settled)
        if wake:
            self._post(self._turn)

    def _let_go(self, entries: Sequence[Entry]) -> None:
        self._held_bytes -= sum(entry.size_bytes for entry in entries)

    def _note_idle(self) -> None:
        if self._is_stopping and not any(line.waiting or line.is_busy for line in self._lines.values()):
            self._idle.set()

    def _hand_over(self, settled: Settled) -> None:
        if settled:
            self._post(partial(self._runner.deliver, settled))
