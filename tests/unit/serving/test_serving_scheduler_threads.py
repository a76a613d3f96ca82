"""The scheduler on real threads: a run without an end is ended, workers come and go, callers wait their turn."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import numpy as np
from tests.fakes import served_models as models
from tests.fakes.scheduling import SLOW_S, WatchedSession, traits

from holdfast.clock import SystemClock
from holdfast.errors import DeadlineError, StoppingError
from holdfast.inference.pool import ModelPool
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.protocols import Answer, Pending
from holdfast.serving.scheduler import ModelScheduler
from holdfast.serving.shell import ThreadAlarm, ThreadWorker

PATIENCE_S = 30.0


def wait_for(condition: Callable[[], bool]) -> None:
    end_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end_s, "waited too long"
        time.sleep(0.002)


def scheduler_of(**served: bytes) -> ModelScheduler:
    pool = ModelPool()
    for name, model in served.items():
        pool.swap(name, "1", WatchedSession(model, traits(SLOW_S)))
    return ModelScheduler(pool, SystemClock(), lambda call: call())


def endless() -> TensorRequest:
    return TensorRequest("endless", "", "", {"x": np.zeros(1, dtype=np.float32)})


def scaled(value: float) -> TensorRequest:
    return TensorRequest("scale", "", "", {"x": np.full((1, 4), value, dtype=np.float32)})


def test_a_run_past_its_deadline_is_ended_and_the_worker_goes_on() -> None:
    scheduler = scheduler_of(endless=models.hangs_at_first_run())

    for _ in range(2):  # the second needs the thread of the first
        (answer,) = scheduler.run([endless()], time.monotonic() + 0.05)
        assert isinstance(answer, DeadlineError)

    scheduler.stop(PATIENCE_S)
    line = scheduler._lines["endless", False]
    assert not line.is_busy
    assert line.running == []


def test_stop_ends_a_run_that_has_no_deadline() -> None:
    scheduler = scheduler_of(endless=models.hangs_at_first_run())
    answers: list[Answer] = []
    scheduler.submit([Pending(endless(), None, answers.append)])
    wait_for(lambda: scheduler._lines["endless", False].stop is not None)

    scheduler.stop(0.01)

    assert isinstance(answers[0], StoppingError)
    wait_for(lambda: not scheduler._lines["endless", False].is_busy)


def test_many_callers_each_get_their_own_answer() -> None:
    scheduler = scheduler_of(scale=models.scale(2.0))
    wrong: list[object] = []

    def ask(caller: int) -> None:
        for turn in range(50):
            value = caller * 1_000.0 + turn
            (answer,) = scheduler.run([scaled(value)])
            if not isinstance(answer, TensorResponse) or answer.outputs["y"][0, 0] != 2 * value:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)

    assert wrong == []
    scheduler.stop(PATIENCE_S)


def test_worker_thread_goes_when_idle_and_comes_back() -> None:
    worker, done = ThreadWorker("m", idle_s=0.01), list[str]()

    for turn in range(3):
        worker.start(lambda turn=turn: done.append(threading.current_thread().name))  # type: ignore[misc]  # default
        wait_for(lambda turn=turn: len(done) == turn + 1)  # type: ignore[misc]  # a bound default
        wait_for(lambda: not worker._is_alive)

    assert done == ["model-m"] * 3


def test_alarm_rings_at_the_earlier_of_two_times_and_not_when_closed() -> None:
    rung = threading.Event()
    alarm = ThreadAlarm(SystemClock(), rung.set)

    alarm.at(time.monotonic() + 1_000)
    alarm.at(time.monotonic() + 0.01)

    assert rung.wait(PATIENCE_S)
    alarm.close()
    rung.clear()
    alarm.at(time.monotonic())
    wait_for(lambda: not any(thread.name == "scheduler-alarm" for thread in threading.enumerate()))
    assert not rung.is_set()
