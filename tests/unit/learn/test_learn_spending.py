"""The account of what rounds have cost: durable, by UTC day, never reset by a clock that goes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock

from holdfast.errors import StateError
from holdfast.learn.spending import Spending
from holdfast.wire.messages import PrivacyTerms, RoundOffer

DAY_S = 86_400


def offer(purpose: str = "p", epsilon: float = 0.5) -> RoundOffer:
    terms = PrivacyTerms(epsilon=epsilon)
    return RoundOffer("r", 1, 1, purpose, "train", "m", "d", b"", 4, 1, 1, 0.1, 0, 1, "float32", terms, 0, 1)


def test_what_was_spent_survives_a_restart(tmp_path: Path) -> None:
    clock = FakeClock()
    Spending(tmp_path / "s.json", clock).charge(offer(), 100)

    spent = Spending(tmp_path / "s.json", clock).now()

    assert (spent.rounds, spent.epsilon, dict(spent.bytes_out)) == (1, 0.5, {"p": 100})


def test_a_new_day_resets_rounds_and_bytes_but_not_privacy(tmp_path: Path) -> None:
    clock = FakeClock()
    spending = Spending(tmp_path / "s.json", clock)
    spending.charge(offer(), 100)

    clock.advance(DAY_S)

    assert (spending.now().rounds, spending.now().epsilon, dict(spending.now().bytes_out)) == (0, 0.5, {})


def test_a_clock_set_back_does_not_open_the_budget_again(tmp_path: Path) -> None:
    clock = FakeClock()
    spending = Spending(tmp_path / "s.json", clock)
    spending.charge(offer(), 100)

    clock.set_wall_clock(clock.utc_ns() - 3 * DAY_S * 1_000_000_000)

    assert spending.now().rounds == 1


@pytest.mark.parametrize("damaged", [b"", b"[]", b'{"day":1}', b'{"day":1,"rounds":-1,"epsilon":0,"bytes_out":{}}'])
def test_damaged_account_stops_spending(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "s.json").write_bytes(damaged)

    with pytest.raises(StateError, match="nobody knows"):
        Spending(tmp_path / "s.json", FakeClock())
