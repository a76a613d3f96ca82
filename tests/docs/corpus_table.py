"""The table of architectures in the runtime's README, from `tests/corpus/corpus.json`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

CORPUS = Path(__file__).resolve().parents[1] / "corpus" / "corpus.json"
EXPORT = "export: "  # how refusals begin that are the exporter's or the runtime's own
EXPORTERS = {"torchscript": "TorchScript exporter", "dynamo": "dynamo exporter", "written": "made by hand"}

HEAD = ("architecture", "from", "nodes", "values that learn", *EXPORTERS.values())

Finding = Mapping[str, object]


def findings() -> list[Finding]:
    """What became of each architecture through each exporter."""
    found: list[Finding] = json.loads(CORPUS.read_text(encoding="utf-8"))
    return found


def is_file(finding: Finding) -> bool:
    """Whether there is a file that the runtime takes: the others say nothing about training."""
    return not str(finding["refusal"]).startswith(EXPORT)


def shares(found: list[Finding]) -> tuple[int, int, int, int]:
    """Files, files that train with verified gradients, architectures, and those of them that train in some form."""
    files = [each for each in found if is_file(each)]
    names = {(each["source"], each["name"]) for each in found}
    train = {(each["source"], each["name"]) for each in files if each["verified"]}
    return len(files), sum(bool(each["verified"]) for each in files), len(names), len(train)


def summary(found: list[Finding]) -> str:
    """The shares in words."""
    files, verified, names, train = shares(found)
    return (
        f"**{verified} of {files} files build a training step with verified gradients ({verified / files:.1%}); "
        f"{train} of {names} architectures do in some form.** {len(found) - files} exports gave no file that runs."
    )


def rows(found: list[Finding]) -> list[tuple[str, ...]]:
    """One row per architecture: name, source, nodes, parameters, and what came of it by each exporter."""
    by_name: dict[tuple[str, str], dict[str, Finding]] = defaultdict(dict)
    for each in found:
        by_name[str(each["name"]), str(each["source"])][str(each["exporter"])] = each
    made = []
    for (name, source), each in by_name.items():
        best = max(each.values(), key=lambda finding: (bool(finding["verified"]), int(str(finding["nodes"]))))
        nodes = " / ".join(str(each[exporter]["nodes"] or "-") for exporter in EXPORTERS if exporter in each)
        cells = [_cell(each.get(exporter)) for exporter in EXPORTERS]
        made.append((name, source, nodes, str(best["trainable"]), *cells))
    return made


def _cell(finding: Finding | None) -> str:
    if finding is None:
        return ""
    if finding["verified"]:
        return f"{finding['verified']}, {finding['error']:.0e}"
    reason = str(finding["refusal"])
    if reason.startswith(EXPORT):
        return "not exported"
    return "**no**: " + reason.partition(";")[0].partition(", asked for")[0]
