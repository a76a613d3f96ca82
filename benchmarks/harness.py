"""How a figure is measured here: A and B take turns in one run, and the ratio is reported with its spread.

Rules:
- A block is a few hundred to a few thousand operations; blocks of A and B alternate (A B A B ...), so that a machine
  that gets slower or busier meets both. Every ratio is of two neighbouring blocks.
- Every figure has min, median and max over the blocks; never a mean of everything, never the best run.
- A result carries what it was measured on, and how loaded the machine was meanwhile.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

SCHEMA = "holdfast/benchmark/v1"
RESULTS = Path(__file__).resolve().parent / "results"
SUMMARY = RESULTS / "summary.json"
PACKAGES = ("holdfast", "onnxruntime", "numpy", "grpcio", "protobuf", "cryptography")

Figures = Mapping[str, float]  # metric with its unit in the name -> value, of one block
Block = Callable[[], Figures]


@dataclass(frozen=True, slots=True)
class Options:
    """quick: a fifth of the rounds and small blocks, to see that everything runs; its figures are not for keeping."""

    quick: bool = False

    @property
    def rounds(self) -> int:
        return 3 if self.quick else 15

    def count(self, full: int) -> int:
        """Operations per block."""
        return max(20, full // 20) if self.quick else full

    def seconds(self, full: float) -> float:
        """Length of a block that is bounded by time."""
        return full / 20 if self.quick else full


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over the blocks."""

    minimum: float
    median: float
    maximum: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric of B beside A. `a` and `ratio` (B / A) are None where only B has the metric."""

    name: str
    metric: str
    a_is: str
    b_is: str
    a: Spread | None
    b: Spread
    ratio: Spread | None
    rounds: int


@dataclass(frozen=True, slots=True)
class NotRun:
    """A comparison that this machine cannot make, and why."""

    name: str
    reason: str


Outcome = Comparison | NotRun


def spread(values: Sequence[float]) -> Spread:
    return Spread(min(values), statistics.median(values), max(values))


def timed(operation: Callable[[], object], count: int) -> dict[str, float]:
    """One block: `count` calls, each timed. CPU time is that of this whole process."""
    clock, times = time.perf_counter_ns, [0] * count
    cpu_before = time.process_time_ns()
    for index in range(count):
        start = clock()
        operation()
        times[index] = clock() - start
    cpu_ns = time.process_time_ns() - cpu_before
    times.sort()
    return {
        "p50_us": times[count // 2] / 1e3,
        "p99_us": times[min(count - 1, count * 99 // 100)] / 1e3,
        "cpu_us": cpu_ns / count / 1e3,
    }


def take_turns(a: Block, b: Block, rounds: int) -> tuple[list[Figures], list[Figures]]:
    """A B A B ...; the first pair warms both up and is dropped."""
    of_a, of_b = take_turns_of((a, b), rounds)
    return of_a, of_b


def take_turns_of(blocks: Sequence[Block], rounds: int) -> list[list[Figures]]:
    """A B C A B C ...; the first round warms all up and is dropped. Returns the figures per block."""
    figures: list[list[Figures]] = [[] for _ in blocks]
    for index in range(rounds + 1):
        for block, kept in zip(blocks, figures, strict=True):
            of_block = block()
            if index > 0:
                kept.append(of_block)
    return figures


def compare(name: str, a: tuple[str, Block], b: tuple[str, Block], rounds: int) -> list[Outcome]:
    """Measure B beside A: one comparison per metric that B has."""
    of_a, of_b = take_turns(a[1], b[1], rounds)
    return outcomes(name, (a[0], of_a), (b[0], of_b))


def alone(name: str, b_is: str, block: Block, rounds: int) -> list[Outcome]:
    """Measure what nothing stands beside."""
    return outcomes(name, None, (b_is, take_turns_of((block,), rounds)[0]))


def outcomes(name: str, a: tuple[str, list[Figures]] | None, b: tuple[str, list[Figures]]) -> list[Outcome]:
    """One comparison per metric that B has, of blocks that took turns."""
    made: list[Outcome] = []
    b_is, of_b = b
    for metric in of_b[0]:
        values = [block[metric] for block in of_b]
        before = [block[metric] for block in a[1]] if a is not None and metric in a[1][0] else None
        ratios = [x / y for x, y in zip(values, before, strict=True)] if before and min(before) > 0 else None
        made.append(
            Comparison(
                name,
                metric,
                "" if a is None else a[0],
                b_is,
                spread(before) if before else None,
                spread(values),
                spread(ratios) if ratios else None,
                len(values),
            )
        )
    return made


def environment() -> dict[str, object]:
    """What figures of this moment were measured on. What cannot be read is null."""
    return {
        "utc": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": _commit(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "kernel": ".".join(platform.release().split(".")[:2]),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def store(name: str, outcomes: Sequence[Outcome], stamp: Mapping[str, object], options: Options) -> Path:
    """Write one benchmark's result; results are not for git, except the summary."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{str(stamp['utc']).replace(':', '')}.json"
    path.write_text(json.dumps(_record(outcomes, stamp, options), indent=1) + "\n", encoding="utf-8")
    return path


def publish(results: Mapping[str, tuple[Sequence[Outcome], Mapping[str, object]]], options: Options) -> None:
    """Put these benchmarks into the committed summary; the others stay as they are."""
    summary = json.loads(SUMMARY.read_text(encoding="utf-8")) if SUMMARY.exists() else {}
    for name, (outcomes, stamp) in results.items():
        summary[name] = _record(outcomes, stamp, options)
    ordered = {name: summary[name] for name in sorted(summary)}
    SUMMARY.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


def summary_table(summary: Mapping[str, Mapping[str, object]]) -> str:
    """The committed figures as Markdown: one table, and below it where, when and under which load."""
    lines = [
        "| benchmark | A is | B is | figure | A | B | B / A: min, median, max |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    machines: dict[str, list[str]] = {}
    for name, record in summary.items():
        lines += [_line(row) for row in record["outcomes"]]  # type: ignore[attr-defined]  # JSON
        stamp: Mapping[str, object] = record["environment"]  # type: ignore[assignment]  # JSON
        occasion = f"`{name}` ({stamp['utc']}, commit {stamp['commit']}, load {stamp['load']})"
        machines.setdefault(_machine(stamp), []).append(occasion)
    return "\n".join([*lines, *(f"\nOn {machine}: {', '.join(names)}." for machine, names in machines.items())])


def show(outcome: Outcome) -> str:
    """One outcome on one line, for a terminal."""
    if isinstance(outcome, NotRun):
        return f"  {outcome.name}: not run, {outcome.reason}"
    ratio = f"   x {_three(outcome.ratio)}" if outcome.ratio else ""
    a = f"A {_number(outcome.a.median)} ({outcome.a_is})   " if outcome.a else ""
    return f"  {outcome.name:<22} {outcome.metric:<14} {a}B {_number(outcome.b.median)} ({outcome.b_is}){ratio}"


def _record(outcomes: Sequence[Outcome], stamp: Mapping[str, object], options: Options) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "quick": options.quick,
        "environment": dict(stamp),
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _line(row: Mapping[str, object]) -> str:
    if "reason" in row:
        return f"| {row['name']} |  |  | not run: {row['reason']} |  |  |  |"
    a, b, ratio = (None if row[key] is None else Spread(**row[key]) for key in ("a", "b", "ratio"))  # type: ignore[arg-type]
    cells = (
        row["name"],
        row["a_is"],
        row["b_is"],
        str(row["metric"]).replace("_", " "),
        "" if a is None else _number(a.median),
        "" if b is None else _number(b.median),
        "" if ratio is None else _three(ratio),
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _machine(stamp: Mapping[str, object]) -> str:
    packages = ", ".join(f"{package} {number}" for package, number in stamp["packages"].items())  # type: ignore[attr-defined]
    return f"{stamp['cpu']}, {stamp['cores']} cores, Linux {stamp['kernel']}, Python {stamp['python']}, {packages}"


def _three(of: Spread) -> str:
    return ", ".join(_number(value) for value in (of.minimum, of.median, of.maximum))


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value == 0 or abs(value) >= 1000:
        return f"{value:.0f}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}" if abs(value) >= 0.1 else f"{value:.3f}"


def _commit() -> str | None:
    command = ["git", "-C", str(RESULTS.parent.parent), "rev-parse", "--short=12", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu() -> str | None:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            names = (line.partition(":")[2].strip() for line in file.read(65_536).splitlines() if "model name" in line)
            return next(names, None)
    except OSError:
        return None
