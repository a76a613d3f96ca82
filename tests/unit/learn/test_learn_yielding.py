"""Training waits while serving needs the machine, and not for ever."""

from __future__ import annotations

from tests.fakes.clock import FakeClock

from holdfast.learn.yielding import CHECK_S, Gate


def test_gate_is_open_when_nobody_asks() -> None:
    assert Gate(FakeClock(), None, deadline_s=None, longest_pause_s=1.0).may_go_on()


def test_gate_waits_while_a_pause_is_asked_for() -> None:
    clock, answers = FakeClock(), [True, True, False]
    started = clock.monotonic_s()

    assert Gate(clock, lambda: answers.pop(0), deadline_s=None, longest_pause_s=60.0).may_go_on()

    assert answers == []
    assert abs(clock.monotonic_s() - started - 2 * CHECK_S) < 1e-9


def test_gate_closes_when_a_pause_is_too_long() -> None:
    clock = FakeClock()
    started = clock.monotonic_s()

    assert not Gate(clock, lambda: True, deadline_s=None, longest_pause_s=60.0).may_go_on()

    assert 60.0 <= clock.monotonic_s() - started < 61.0


def test_gate_closes_at_the_deadline_even_in_a_pause() -> None:
    clock = FakeClock()
    started = clock.monotonic_s()

    assert not Gate(clock, lambda: True, deadline_s=started + 5, longest_pause_s=60.0).may_go_on()

    assert 5.0 <= clock.monotonic_s() - started < 6.0
