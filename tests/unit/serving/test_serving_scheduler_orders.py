"""Whatever the order of arrivals, runs, deadlines and swaps: each request gets one answer, the one it gets alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.scheduling import QUICK_S, SLOW_S, Lab, traits

from holdfast.errors import DeadlineError, HoldfastError, InferenceError, OverloadedError, StoppingError
from holdfast.inference.session import ModelSource, load_session
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.line import Entry, Line
from holdfast.serving.protocols import Pending
from holdfast.serving.scheduler import SchedulerOptions

BUCKETS = (1, 2, 4, 8)
MODELS = {
    "quick": (models.scale(2.0), traits(QUICK_S, BUCKETS)),
    "alone": (models.scale(5.0), traits(QUICK_S)),
    "slow": (models.scale(3.0), traits(SLOW_S, BUCKETS)),
    "slow-alone": (models.scale(4.0), traits(SLOW_S)),
    "table": (models.gather(), traits(SLOW_S, BUCKETS, 1)),  # fails on an index past its three rows
}
OTHER_VERSION = load_session(ModelSource(models.scale(7.0)))
ALONE = {name: load_session(ModelSource(model)) for name, (model, _) in MODELS.items()}


@dataclass(frozen=True)
class Ask:
    model: str
    rows: int
    value: int
    timeout_s: float | None
    priority: int
    outputs: tuple[str, ...]


asks = st.builds(
    Ask,
    st.sampled_from([*MODELS, "unknown"]),
    st.integers(0, 9),
    st.integers(0, 3),
    st.sampled_from([None, None, 0.0, 0.05, 5.0]),
    st.integers(0, 4),
    st.sampled_from([(), (), ("y",), ("q",)]),
)
steps = st.one_of(
    st.lists(asks, min_size=1, max_size=12),
    st.sampled_from(["job", "posted", "ring", "swap"]),
    st.floats(0.0, 0.2),
)


class Story:
    """Plays steps in a lab and remembers what was asked, of which version."""

    def __init__(self, options: SchedulerOptions) -> None:
        self.lab = Lab(options)
        self.asked: dict[str, tuple[Ask, TensorRequest, str]] = {}
        self.version, self.swaps = 1, 0
        self.either: set[str] = set()
        for name, (model, of) in MODELS.items():
            session = self.lab.serve(name, model, of)
            session.on_run = lambda inputs, stop: self.during()
        self.at_next_run: list[object] = []

    def during(self) -> None:
        """While a model runs on its worker, other things happen."""
        if self.at_next_run:
            self.play(self.at_next_run.pop())

    def play(self, step: object) -> None:
        if isinstance(step, list):
            swaps = self.swaps
            batch = [self.pending(ask) for ask in step]
            self.lab.scheduler.submit(batch)
            if self.swaps > swaps:  # while this was being submitted: either version may have accepted it
                self.either.update(pending.request.request_id for pending in batch)
        elif step == "job" and self.lab.shell.jobs:
            self.lab.shell.jobs.popleft()()
        elif step == "posted" and self.lab.posted:
            self.lab.posted.popleft()()
        elif step == "ring":
            self.lab.ring()
        elif step == "swap":
            self.version, self.swaps = 3 - self.version, self.swaps + 1
            model, of = MODELS["slow"]
            session = OTHER_VERSION if self.version == 2 else load_session(ModelSource(model))
            self.lab.pool.swap("slow", str(self.version), session.measured(of))
        elif isinstance(step, float):
            self.lab.clock.advance(step)

    def pending(self, ask: Ask) -> Pending:
        name = str(len(self.asked))
        shape = (ask.rows,) if ask.model == "table" else (ask.rows, 4)
        dtype = np.int64 if ask.model == "table" else np.float32
        request = TensorRequest(ask.model, "", name, {"x": np.full(shape, ask.value, dtype=dtype)}, ask.outputs)
        self.asked[name] = (ask, request, str(self.version) if ask.model == "slow" else "1")
        return self.lab.pending(request, ask.timeout_s, ask.priority)

    def check(self) -> None:
        assert self.lab.scheduler._held_bytes == 0  # or the bound on memory would refuse everybody some day
        for name, (ask, request, version) in self.asked.items():
            answer = self.lab.answer(name)  # exactly one
            if name in self.either and isinstance(answer, TensorResponse):
                version = answer.version
            if isinstance(answer, DeadlineError):
                assert ask.timeout_s is not None
            elif isinstance(answer, OverloadedError):
                assert answer.code == OverloadedError.code
            else:
                _assert_same(answer, _alone(request, version), version)


@settings(max_examples=120, deadline=None)
@given(
    st.lists(steps, max_size=25),
    st.lists(steps, max_size=6),
    st.sampled_from([SchedulerOptions(), SchedulerOptions(max_queued=3, turn_s=0.0), SchedulerOptions(delay_s=0.02)]),
)
def test_any_order_gives_each_request_its_own_answer_once(
    played: list[object], during: list[object], options: SchedulerOptions
) -> None:
    story = Story(options)
    story.at_next_run = during

    for step in played:
        story.play(step)
    story.at_next_run = []
    for _ in range(2):  # windows and deadlines that were still open
        story.lab.settle()
        story.lab.clock.advance(10.0)
        story.lab.ring()
    story.lab.settle()

    story.check()


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=15))
def test_closing_at_any_moment_answers_everybody(played: list[object]) -> None:
    story = Story(SchedulerOptions())
    for step in played:
        story.play(step)

    story.lab.scheduler.close()
    story.lab.settle()

    for name, (_, request, version) in story.asked.items():
        answer = story.lab.answer(name)
        if not isinstance(answer, DeadlineError | StoppingError | OverloadedError):
            _assert_same(answer, _alone(request, version), version)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4), st.sampled_from([None, 1.0, 2.0]), st.booleans())),
    st.lists(st.sampled_from(["take", "late"])),
)
def test_a_line_loses_nobody_and_keeps_its_sums(
    comers: list[tuple[int, int, float | None, bool]], ways_out: list[str]
) -> None:
    lab = Lab()
    lab.serve("m", models.scale(1.0), traits(QUICK_S, BUCKETS))
    line, model, gone = Line("m", is_inline=True), lab.pool.get("m"), list[Entry]()
    for rows, priority, deadline_s, named in comers:
        request = TensorRequest("m", "", "", {}, ("y",) if named else ())
        shared = rows if rows <= BUCKETS[-1] else 0
        line.add(Entry(Pending(request, deadline_s, lambda answer: None, priority), model, shared, 1, 0.1, 0.5, 0.0))
    added = list(line)

    for way in [*ways_out, *["take"] * len(comers)]:
        batch = line.take() if way == "take" else line.take_late(1.5)
        assert way == "late" or sum(entry.rows for entry in batch) <= BUCKETS[-1]
        gone += batch
        assert line.waiting == len(added) - len(gone) == len(list(line))
        assert line.rows == sum(entry.rows for entry in line)
        assert abs(line.backlog_s - 0.5 * line.waiting) < 1e-6

    assert sorted(map(id, gone)) == sorted(map(id, added))


def _alone(request: TensorRequest, version: str) -> dict[str, np.ndarray] | HoldfastError | None:
    """What the model says to this request by itself; None if there is no such model."""
    if request.model not in ALONE:
        return None
    session = OTHER_VERSION if request.model == "slow" and version == "2" else ALONE[request.model]
    try:
        return session.run(request.inputs, request.outputs)
    except HoldfastError as error:
        return error


def _assert_same(answer: object, alone: dict[str, np.ndarray] | HoldfastError | None, version: str) -> None:
    if alone is None:
        assert isinstance(answer, HoldfastError)
    elif isinstance(alone, InferenceError):
        assert isinstance(answer, InferenceError)  # the model's own words may name another place
    elif isinstance(alone, HoldfastError):
        assert type(answer) is type(alone)
        assert str(answer) == str(alone)
    else:
        assert isinstance(answer, TensorResponse), answer
        assert answer.version == version
        assert {name: (array.shape, array.tobytes()) for name, array in answer.outputs.items()} == {
            name: (array.shape, array.tobytes()) for name, array in alone.items()
        }
