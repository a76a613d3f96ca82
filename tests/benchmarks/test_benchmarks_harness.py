"""The benchmark harness: turns, spreads, stored results, and the table made from them. No test asserts a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks import harness, run
from benchmarks.harness import Comparison, Figures, NotRun, Options, Spread, compare, summary_table, take_turns, timed

STAMP = {
    "utc": "2026-01-01T00:00:00Z",
    "commit": "abc",
    "cpu": "a cpu",
    "cores": 2,
    "load": 0.5,
    "kernel": "6",
    "python": "3.11",
    "packages": {"numpy": "2"},
}


def test_harness_takes_turns_and_drops_the_first_pair() -> None:
    order: list[str] = []

    def block(name: str) -> Figures:
        order.append(name)
        return {"calls": float(len(order))}

    of_a, of_b = take_turns(lambda: block("a"), lambda: block("b"), rounds=3)

    assert order == ["a", "b"] * 4
    assert [figures["calls"] for figures in of_a] == [3, 5, 7]
    assert [figures["calls"] for figures in of_b] == [4, 6, 8]


def test_harness_forms_the_ratio_of_neighbours() -> None:
    a, b = iter([9.0, 1.0, 2.0, 4.0]), iter([9.0, 3.0, 2.0, 20.0])

    (outcome,) = compare("x", ("A", lambda: {"p50_us": next(a)}), ("B", lambda: {"p50_us": next(b)}), rounds=3)

    assert isinstance(outcome, Comparison)
    assert (outcome.a, outcome.b) == (Spread(1.0, 2.0, 4.0), Spread(2.0, 3.0, 20.0))
    assert outcome.ratio == Spread(1.0, 3.0, 5.0)


def test_harness_gives_no_ratio_without_an_a() -> None:
    outcomes = compare("x", ("A", lambda: {"p50_us": 1.0}), ("B", lambda: {"p50_us": 2.0, "server_cpu_us": 3.0}), 1)

    alone = outcomes[1]
    assert isinstance(alone, Comparison)
    assert (alone.metric, alone.a, alone.ratio) == ("server_cpu_us", None, None)


def test_harness_calls_as_often_as_it_says() -> None:
    calls: list[int] = []

    figures = timed(lambda: calls.append(1), 50)

    assert len(calls) == 50
    assert 0 <= figures["p50_us"] <= figures["p99_us"]


def test_harness_stores_and_publishes_only_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    monkeypatch.setattr(harness, "SUMMARY", tmp_path / "summary.json")
    old, new = [NotRun("one/x", "because")], [Comparison("two/y", "p50_us", "A", "B", None, Spread(1, 2, 3), None, 15)]

    harness.publish({"one": (old, STAMP)}, Options())
    harness.publish({"two": (new, STAMP)}, Options())
    path = harness.store("two", new, STAMP, Options(quick=True))

    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert list(summary) == ["one", "two"]
    assert json.loads(path.read_text(encoding="utf-8"))["quick"] is True
    table = summary_table(summary)
    assert "| one/x |  |  | not run: because |" in table
    assert "| two/y | A | B | p50 us |  | 2.00 |  |" in table
    assert table.count("(2026-01-01T00:00:00Z, commit abc, load 0.5)") == 2
    assert table.count("a cpu, 2 cores, Linux 6, Python 3.11, numpy 2") == 1


def test_benchmarks_committed_summary_is_whole_and_not_quick() -> None:
    summary = json.loads(harness.SUMMARY.read_text(encoding="utf-8"))

    assert set(summary) == set(run.NAMES)
    for record in summary.values():
        assert record["schema"] == harness.SCHEMA
        assert not record["quick"]
        assert record["environment"]["packages"].keys() == set(harness.PACKAGES)
        # a median of fewer says nothing; a block over the socket costs seconds, so it gets the least that does
        assert all(row.get("rounds", 5) >= 5 for row in record["outcomes"])


def test_benchmarks_a_missing_package_is_a_reason_and_ours_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def importing(name: str) -> object:
        raise ModuleNotFoundError(name=missing)

    monkeypatch.setattr(run.importlib, "import_module", importing)

    missing = "onnx"
    assert run.run_one("training", Options()) == [NotRun("training", "onnx is not installed")]
    missing = "holdfast.no_such_room"
    with pytest.raises(ModuleNotFoundError):
        run.run_one("training", Options())


@pytest.mark.parametrize("arguments", [["no-such"], ["--quick", "--publish"]])
def test_benchmarks_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(arguments)

    assert "error" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", run.NAMES)
def test_benchmarks_every_one_runs(name: str) -> None:
    outcomes = run.run_one(name, Options(quick=True))

    measured = [outcome for outcome in outcomes if isinstance(outcome, Comparison)]
    if not measured:  # a tool is not installed here
        pytest.skip("; ".join(outcome.reason for outcome in outcomes if isinstance(outcome, NotRun)))
    assert all(outcome.b.minimum <= outcome.b.median <= outcome.b.maximum for outcome in measured)
