"""What gives way, like the loading of a model: its own priority is lower, everybody else's stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock

from holdfast.inference import prepare
from holdfast.inference.background import NICE, THREAD_NICE, in_background, lower_process
from holdfast.inference.session import ModelSession, ModelSource, SessionOptions, load_session


def nice_of_this_thread() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_work_runs_on_a_thread_of_low_priority_and_the_callers_stays() -> None:
    before = nice_of_this_thread()

    assert in_background(nice_of_this_thread) == max(before, THREAD_NICE)
    assert nice_of_this_thread() == before


def test_a_priority_that_is_lower_already_stays() -> None:
    assert in_background(lambda: in_background(_lowest)) == 19


def _lowest() -> int:
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
    return in_background(nice_of_this_thread)


def test_what_the_work_raises_reaches_the_caller() -> None:
    def work() -> None:
        raise KeyError("not there")

    with pytest.raises(KeyError, match="not there"):
        in_background(work)


def test_a_process_is_lowered_and_so_is_the_session_it_leads() -> None:
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with subprocess.Popen(waits, stdin=subprocess.PIPE, start_new_session=True) as process:
        lower_process(process.pid)

        assert os.getpriority(os.PRIO_PROCESS, process.pid) == NICE
        session = Path(f"/proc/{process.pid}/autogroup")
        if session.exists() and os.geteuid() == 0:  # else another test may have used up the one change in 0.1 s
            assert session.read_text(encoding="ascii").split()[-1] == str(NICE)
        assert process.stdin is not None
        process.stdin.close()


def test_a_process_that_is_gone_is_no_error() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()

    lower_process(process.pid)


def test_a_model_is_loaded_and_measured_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    nices: list[int] = []
    monkeypatch.setattr(prepare, "load_session", watched(nices))

    prepare.prepare_session(ModelSource(models.scale(1.0)), clock=FakeClock())

    assert nices == [max(THREAD_NICE, nice_of_this_thread())]


def test_a_session_with_threads_of_its_own_is_made_at_full_priority_so_that_they_have_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nices: list[int] = []
    monkeypatch.setattr(prepare, "load_session", watched(nices))

    prepare.prepare_session(ModelSource(models.scale(1.0)), SessionOptions(intra_op_threads=2), clock=FakeClock())

    assert nices == [nice_of_this_thread()]


def watched(nices: list[int]) -> Callable[[ModelSource, SessionOptions], ModelSession]:
    """A load_session that notes the priority of its thread."""

    def load(source: ModelSource, options: SessionOptions) -> ModelSession:
        nices.append(nice_of_this_thread())
        return load_session(source, options)

    return load


def test_where_the_processor_is_unknown_slices_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")

    assert in_background(nice_of_this_thread) == max(THREAD_NICE, nice_of_this_thread())
