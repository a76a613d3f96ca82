"""`holdfast evidence export`: the whole log of a coordinator as one file that anybody can check offline."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import EvidenceError, UsageError

if TYPE_CHECKING:
    from holdfast.evidence.layout import ClaimedKey
    from holdfast_federation.server.build import Core

DESCRIPTION = """Write everything that a coordinator's log holds, with proofs, figures and claimed keys, to one file.

  holdfast evidence export state/ -o pilot.evidence --scorecard scorecard.yaml
  holdfast evidence verify pilot.evidence --root ...

Works beside a running coordinator, and without one. The file is checked before it is written. It holds signed
records, policies and manifests, no models and no data.
"""


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state", type=Path, metavar="STATE", help="the coordinator's state folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="where to write the evidence")
    parser.add_argument("--scorecard", type=Path, metavar="FILE", help="a scorecard.yaml to answer from the figures")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.clock import SystemClock
    from holdfast.evidence.figures import Figures
    from holdfast.evidence.layout import write_evidence
    from holdfast.evidence.scorecard import parse_definition
    from holdfast.evidence.verify import verify_evidence
    from holdfast.trust.durable import write_atomic
    from holdfast_federation.governance.scorecard import answer, read_definition, render
    from holdfast_federation.ledger.export import collect_evidence
    from holdfast_federation.server.build import open_core
    from holdfast_federation.server.settings import CoordinatorSettings
    from holdfast_federation.server.state import open_state

    definition = read_definition(_read(arguments.scorecard)) if arguments.scorecard else None
    clock = SystemClock()
    state = open_state(arguments.state)
    core = open_core(state, CoordinatorSettings(), clock)  # nothing that listens is started: settings don't matter

    def answered(figures: Figures) -> bytes:
        return answer(definition, figures)[1]

    try:
        evidence = collect_evidence(
            core.ledger,
            _keys(core),
            exported_utc_ns=clock.utc_ns(),
            scorecard=answered if definition is not None else None,
        )
    finally:
        core.database.close()
    data = write_evidence(evidence)
    verdict = verify_evidence(data, progress=_say)
    write_atomic(arguments.output, data)  # also when it does not hold: then it is evidence of that
    if arguments.json:
        document = {"file": str(arguments.output), "size_bytes": len(data), "entries": evidence.tree_size}
        print(json.dumps(document | {"consistent": verdict.consistent, "origin": evidence.origin}))
    else:
        if verdict.scorecard is not None:
            print(render(parse_definition(definition), verdict.scorecard))
        print(f"wrote {arguments.output}: {evidence.tree_size} entries of {evidence.origin}, {len(data)} bytes")
    if not verdict.consistent:
        raise EvidenceError(f"the log does not hold: {verdict.findings[0]}; the file was written to show it")
    return EXIT_OK


def _keys(core: Core) -> list[ClaimedKey]:
    """The public keys of everybody but the ledger."""
    from holdfast.evidence.layout import APPROVER, ASSIGNMENT, AUTHOR, RUN, SITE, ClaimedKey

    keys = [ClaimedKey(role, "", core.authority.key(role).public_key) for role in (RUN, ASSIGNMENT)]
    keys += [ClaimedKey(SITE, name, key) for name, key in core.principals.sites.items()]
    keys += [ClaimedKey(AUTHOR, key.key_id[:16], key) for key in core.principals.authors]
    keys += [ClaimedKey(APPROVER, key.key_id[:16], key) for key in core.principals.approvers]
    return keys


def _read(path: Path) -> bytes:
    from holdfast_federation.governance.scorecard import MAX_FILE_BYTES

    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read the scorecard {path}: {error.strerror or error}") from error


def _say(step: str) -> None:
    if sys.stderr.isatty():  # silent where nobody looks
        print(f"checking {step} ...", file=sys.stderr)


EXPORT = Command(
    help="write a coordinator's log as evidence", add_arguments=_add_arguments, run=_run, description=DESCRIPTION
)
