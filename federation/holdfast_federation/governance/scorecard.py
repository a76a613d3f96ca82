"""Scorecards as people write and read them: `scorecard.yaml` in, a table out. The arithmetic is in `holdfast.evidence`.

The form of the file is in the docstring of `holdfast/evidence/scorecard.py`. YAML is read without aliases and without
repeated keys, so that what a person sees is what is computed.
"""

from __future__ import annotations

import json
from collections.abc import Hashable
from typing import TYPE_CHECKING

from holdfast.errors import FormatError, MissingExtraError
from holdfast.evidence.figures import Figures, Measured
from holdfast.evidence.layout import canonical_json
from holdfast.evidence.scorecard import Definition, KpiValue, Scorecard, evaluate, parse_definition

if TYPE_CHECKING:
    import yaml

MAX_FILE_BYTES = 65_536  # 64 KiB: 32 KPIs with a page of text each
ANSWERS = {"yes": "yes", "no": "no", "not shown": "not shown: the interval leaves both open"}


def read_definition(data: bytes) -> object:
    """The plain values of a `scorecard.yaml`, checked to be a scorecard.

    Raises:
        FormatError: too large, not YAML, an alias or a repeated key in it, or not a scorecard; says where.
        MissingExtraError: PyYAML is not installed.
    """
    if len(data) > MAX_FILE_BYTES:
        raise FormatError(f"scorecard has {len(data)} bytes, at most {MAX_FILE_BYTES} are read")
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError("scorecards need 'yaml'; install it with: pip install 'holdfast[demo]'") from error
    try:
        text = data.decode()
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise FormatError("scorecard uses a YAML alias (*name); write the value out")
        document: object = yaml.load(text, Loader=_strict_loader())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise FormatError(f"scorecard is not YAML: {' '.join(str(error).split())[:300]}") from error
    parse_definition(document)
    return document


def answer(document: object, figures: Figures) -> tuple[Scorecard, bytes]:
    """The scorecard's answers, and the bytes of `scorecard.json` for an evidence file.

    Raises:
        FormatError: not a scorecard, or a figure it asks for does not exist.
    """
    scorecard = evaluate(parse_definition(document), figures)
    values = json.loads(scorecard.to_json())
    return scorecard, canonical_json({"definition": document, "values": values})


def render(definition: Definition, scorecard: Scorecard) -> str:
    """The scorecard as a table of text."""
    rows: list[tuple[str, ...]] = [("KPI", "unit", "baseline", "now (95 %)", "n", "target", "reached", "evidence")]
    rows += [_row(kpi.unit, value) for kpi, value in zip(definition.kpis, scorecard.kpis, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    table.insert(1, "  ".join("-" * width for width in widths))
    worth = f"{scorecard.value:.6g} {definition.value_unit}"
    if scorecard.value_low is not None and scorecard.value_high is not None:
        worth += f" (95 %: {scorecard.value_low:.6g} to {scorecard.value_high:.6g})"
    inputs = ", ".join(f"{name} = {number:g}" for name, number in definition.inputs.items())
    return "\n".join(
        [
            f"scorecard {definition.name}: {definition.purpose} (owner: {definition.owner})",
            *table,
            f"value = {definition.formula}",
            f"      = {worth}; declared: {inputs or 'nothing'}",
            f"was it worth it (above {definition.threshold:g}, every target reached)? {ANSWERS[scorecard.worth_it]}",
            f"figures: sha256 {scorecard.figures_sha256}",
        ]
    )


def _row(unit: str, value: KpiValue) -> tuple[str, ...]:
    return (
        value.name,
        unit,
        _measured(value.baseline),
        _measured(value.now),
        "" if value.now.n is None else str(value.now.n),
        f"{value.target:g}",
        "yes" if value.reached else "no",
        value.evidence[:12],
    )


def _measured(measured: Measured) -> str:
    if measured.method == "declared":
        return f"{measured.value:.4g} (declared)"
    if measured.low == measured.high:
        return f"{measured.value:.4g}"
    return f"{measured.value:.4g} ({measured.low:.4g} to {measured.high:.4g})"


def _strict_loader() -> type[yaml.SafeLoader]:
    import yaml

    class StrictLoader(yaml.SafeLoader):
        """A SafeLoader that refuses a key that stands twice."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = {key for key in keys if isinstance(key, Hashable) and keys.count(key) > 1}
            if twice:
                raise FormatError(f"scorecard has the key {sorted(map(str, twice))[0]!r} twice")
            return super().construct_mapping(node, deep=deep)

    return StrictLoader
