"""Write the result of the corpus again: run `tests/corpus/install.sh` once, then this with its environment:
`.venv-corpus/bin/python -m tests.corpus.make_corpus`

For every architecture and both of torch's exporters: which operators the file has, whether a training step is built,
and whether its gradients are torch's. The result is `corpus.json`; the table in the runtime's README is made from it.
`--check GROUP` writes nothing and compares with `corpus.json`; the slow tests run it. All takes about ten minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tests.corpus.architecture import Architecture
from tests.corpus.images import IMAGES
from tests.corpus.pretrained import PRETRAINED
from tests.corpus.sequences import SEQUENCES
from tests.corpus.verify import EXPORTERS, Finding, examine, examine_written
from tests.corpus.written import WRITTEN, Written

RESULT = Path(__file__).with_name("corpus.json")
GROUPS: dict[str, tuple[Architecture | Written, ...]] = {
    "images": IMAGES,
    "sequences": SEQUENCES,
    "pretrained": PRETRAINED,
    "written": WRITTEN,
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="only architectures whose names contain one of these; writes nothing")
    parser.add_argument("--check", choices=GROUPS, help="compare one group with corpus.json")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    groups = [asked.check] if asked.check else list(GROUPS)
    findings = []
    for entry in (entry for group in groups for entry in GROUPS[group]):
        if not asked.names or any(name.lower() in entry.name.lower() for name in asked.names):
            for run in _runs(entry):
                findings.append(run())
                print(_line(findings[-1]), file=sys.stderr, flush=True)
    if asked.check:
        return _compare(findings)
    if not asked.names:
        rows = ",\n".join(json.dumps(dataclasses.asdict(each)) for each in findings)
        RESULT.write_text(f"[\n{rows}\n]\n", "utf-8")
    return 0


def _runs(entry: Architecture | Written) -> Iterator[Callable[[], Finding]]:
    if isinstance(entry, Written):
        yield lambda: examine_written(entry)
        return
    for exporter in EXPORTERS:
        yield lambda exporter=exporter: examine(entry, exporter)  # type: ignore[misc]


def _compare(findings: list[Finding]) -> int:
    """Prints what is not as `corpus.json` says; 1 if there is something."""
    known = {(each["name"], each["exporter"]): each for each in json.loads(RESULT.read_text("utf-8"))}
    apart = []
    for finding in findings:
        before = known.get((finding.name, finding.exporter))
        if before is None or (before["verified"], bool(before["refusal"])) != (finding.verified, bool(finding.refusal)):
            apart.append(_line(finding))
    print("\n".join(apart) or f"{len(findings)} findings as before")
    return 1 if apart else 0


def _line(finding: Finding) -> str:
    verdict = finding.verified or finding.refusal[:240]
    return f"{finding.name:32}{finding.exporter:13}{finding.nodes:5} {finding.batch:8} {finding.error} {verdict}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
