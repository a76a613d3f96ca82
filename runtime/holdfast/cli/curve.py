"""A loss curve as text for a terminal, and as an SVG file. Pure: numbers in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

WIDTH, HEIGHT = 60, 8  # characters
SVG_WIDTH, SVG_HEIGHT, SVG_LEFT, SVG_BOTTOM, SVG_EDGE = 640, 320, 64, 40, 16  # pixels
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def text_curve(losses: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> str:
    """The curve as `height` lines of block characters, with the largest and smallest value beside it.

    More values than columns are averaged in groups of neighbours.
    """
    if not losses:
        return "no steps"
    values = averaged(losses, width)
    top = max(values)
    levels = [round(value / top * height * 8) if top > 0 else 0 for value in values]
    lines = []
    for row in range(height - 1, -1, -1):
        cells = "".join(_EIGHTHS[min(8, max(0, level - 8 * row))] for level in levels)
        label = f"{top:.4g}" if row == height - 1 else "0" if row == 0 else ""
        lines.append(f"{label:>9} |{cells}".rstrip())
    return "\n".join([*lines, f"{'':9} +{'-' * len(values)} step {len(losses)}, smallest {min(values):.4g}"])


def svg_curve(losses: Sequence[float], title: str) -> str:
    """The curve as a self-contained SVG: loss over steps, both from 0."""
    values = averaged(losses, SVG_WIDTH - SVG_LEFT - SVG_EDGE) or [0.0]
    top = max(*values, 1e-12)
    width, height = SVG_WIDTH - SVG_LEFT - SVG_EDGE, SVG_HEIGHT - SVG_BOTTOM - 2 * SVG_EDGE
    floor = 2 * SVG_EDGE + height
    points = " ".join(
        f"{SVG_LEFT + width * (index + 0.5) / len(values):.1f},{floor - height * value / top:.1f}"
        for index, value in enumerate(values)
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {SVG_WIDTH} {SVG_HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{SVG_WIDTH}" height="{SVG_HEIGHT}" fill="white"/>',
        f'<text x="{SVG_LEFT}" y="{SVG_EDGE}">{_escaped(title)}</text>',
    ]
    for part in range(5):
        y = floor - height * part / 4
        lines.append(f'<path d="M{SVG_LEFT} {y:.1f}h{width}" stroke="#ccc"/>')
        lines.append(f'<text x="{SVG_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{top * part / 4:.3g}</text>')
    for part in range(5):
        x = SVG_LEFT + width * part / 4
        label = round(len(losses) * part / 4)
        lines.append(f'<text x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{label}</text>')
    lines.append(f'<text x="{SVG_LEFT + width / 2:.1f}" y="{SVG_HEIGHT - 6}" text-anchor="middle">step</text>')
    lines.append(f'<polyline points="{points}" fill="none" stroke="#1659a5" stroke-width="1.5"/>')
    return "\n".join([*lines, "</svg>", ""])


def averaged(values: Sequence[float], most: int) -> list[float]:
    """At most `most` means of neighbouring values, in order."""
    count = min(most, len(values))
    edges = [len(values) * index // count for index in range(count + 1)] if count else []
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
