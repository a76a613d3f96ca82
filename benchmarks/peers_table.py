"""The figures of `serving_peers` as one table with a line per server, for READMEs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NAME = "serving_peers"
CELLS = ("tiny, 1 in flight", "tiny, 32 in flight", "MLP, 1 in flight", "MLP, 32 in flight")
COMMAND = "python -m benchmarks.peers.install && python -m benchmarks.run --publish serving_peers"

Row = Mapping[str, object]


def peers_table(summary: Mapping[str, Mapping[str, object]]) -> str:
    """CPU per request in microseconds and requests per second, medians; servers in the order of their CPU."""
    if NAME not in summary:
        return f"Not measured yet: `{COMMAND}`."
    rows: Sequence[Row] = summary[NAME]["outcomes"]  # type: ignore[assignment]  # JSON
    figures: dict[str, dict[tuple[str, str], float]] = {}
    missing: list[str] = []
    for row in rows:
        if "reason" in row:
            missing.append(f"{str(row['name']).removeprefix('peers/')}: not run, {row['reason']}")
            continue
        cell = (str(row["name"]).removeprefix("peers/"), str(row["metric"]))
        for side in ("a", "b"):
            spread: Mapping[str, float] = row[side]  # type: ignore[assignment]  # JSON
            figures.setdefault(str(row[f"{side}_is"]), {})[cell] = spread["median"]
    key = (CELLS[1], "server_cpu_us")
    lines = [
        "| server | " + " | ".join(CELLS) + " | memory |",
        "| --- |" + " ---: |" * (len(CELLS) + 1),
        *(_line(name, figures[name]) for name in sorted(figures, key=lambda name: figures[name][key])),
    ]
    legend = "CPU of the server per request, and requests per second; memory (PSS) with both models loaded."
    return "\n".join([*lines, "", legend, *(f"{text}." for text in missing)])


def _line(name: str, figures: Mapping[tuple[str, str], float]) -> str:
    cells = [f"{_cpu(figures[cell, 'server_cpu_us'])} us, {figures[cell, 'requests_per_s']:,.0f}/s" for cell in CELLS]
    return f"| {name} | " + " | ".join(cells) + f" | {figures[CELLS[1], 'pss_mb']:.0f} MB |"


def _cpu(microseconds: float) -> str:
    return f"{microseconds:,.0f}" if microseconds >= 100 else f"{microseconds:.3g}"
