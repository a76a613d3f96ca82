"""`holdfast evidence verify`: checks an evidence file offline."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_FAILED, EXIT_OK, Command
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.evidence.layout import ClaimedKey
    from holdfast.evidence.roots import Root
    from holdfast.evidence.verify import Verdict

DESCRIPTION = """Check an evidence file from its bytes alone: signatures, chains, proofs and figures.

  holdfast evidence verify pilot.evidence --root authority/ --root site-north=north/site.pub \\
      --root author.pub --root approver.pub

--root names a key that you trust: a PEM file called <role>.pub or <role>-<name>.pub, any file as ROLE=FILE or
ROLE-NAME=FILE, or a folder of such files. Roles: ledger, run, assignment, site, author, approver. Every key that
signed something in the file must be a root; no key vouches for another. Device keys are vouched for by the ledger.

Exit code 0 only if the file is consistent AND authenticated. Without --root it can only be consistent: anybody can
make such a file with keys of their own. It proves who said what, and that nothing was changed or dropped since; it
does not prove that a device measured the truth, nor that this is the only log its coordinator shows.
"""
MAX_ROOT_FILES = 4_096  # of one folder; more is not a folder of keys


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="the evidence file")
    parser.add_argument("--root", action="append", default=[], metavar="KEY", help="a trusted key (repeatable)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.evidence.verify import verify_evidence

    roots = [root for spoken in arguments.root for root in _roots(spoken)]
    data = _read(arguments.file)
    verdict = verify_evidence(data, roots, progress=_say)
    print(json.dumps(_document(verdict), sort_keys=True) if arguments.json else _text(verdict, has_roots=bool(roots)))
    return EXIT_OK if verdict.authenticated else EXIT_FAILED


def _roots(spoken: str) -> Iterator[Root]:
    from holdfast.evidence.layout import ROLES
    from holdfast.evidence.roots import Root, role_of
    from holdfast.trust.keys import MAX_KEY_BYTES, PublicKey

    role, _, path_text = spoken.rpartition("=")
    path = Path(path_text)
    if path.is_dir():
        files = sorted(path.glob("*.pub"))[:MAX_ROOT_FILES]
        named = [(file.stem, file) for file in files if file.stem.partition("-")[0] in ROLES]
        if not named or role:
            raise UsageError(f"folder {path} has no <role>.pub; roles are {', '.join(ROLES)}")
    else:
        named = [(role or path.stem, path)]
    for spoken_role, file in named:
        root_role, name = role_of(spoken_role)
        try:
            with file.open("rb") as opened:
                text = opened.read(MAX_KEY_BYTES + 1).decode("utf-8", errors="replace")
        except OSError as error:
            raise UsageError(f"cannot read the root key {file}: {error.strerror or error}") from error
        yield Root(root_role, PublicKey.from_pem(text), name)


def _read(path: Path) -> bytes:
    from holdfast.evidence.layout import LIMITS

    try:
        with path.open("rb") as file:
            return file.read(LIMITS.max_total_bytes + 1)
    except OSError as error:
        raise UsageError(f"cannot read the evidence file {path}: {error.strerror or error}") from error


def _say(step: str) -> None:
    if sys.stderr.isatty():  # silent where nobody looks
        print(f"checking {step} ...", file=sys.stderr)


def _text(verdict: Verdict, *, has_roots: bool) -> str:
    lines = [f"{verdict}: {verdict.tree_size} entries of {verdict.origin or 'an unreadable log'}"]
    lines += [f"  does not hold: {finding}" for finding in verdict.findings]
    lines += [f"  signed by {key.file.removeprefix('keys/')} {key.key.key_id[:16]}" for key in verdict.signers]
    if not has_roots:
        lines.append("  no --root was given: anybody can make such a file with keys of their own")
    else:
        lines += [f"  NOT a root: {key.file.removeprefix('keys/')} {key.key.key_id}" for key in verdict.not_roots]
    if verdict.figures is not None:
        fleet = verdict.figures.fleet
        lines.append(f"  derived: {sum(fleet.requests.values())} requests, {fleet.availability.hits} answered; ")
        lines[-1] += f"latency p50 {fleet.latency.p50_s:.4g} s, p99 {fleet.latency.p99_s:.4g} s"
        for name, judged in verdict.figures.evaluation.items():
            lines.append(f"  derived: {name} accuracy {judged.accuracy.share:.4g} of {judged.accuracy.count} samples")
        for name, lost in verdict.figures.losses.items():
            lines.append(f"  derived: {name} loss {lost.loss:.4g} over {lost.count} labels")
    if verdict.scorecard is not None:
        lines.append(f"  derived: scorecard {verdict.scorecard.name}, worth it: {verdict.scorecard.worth_it}")
    return "\n".join(lines)


def _document(verdict: Verdict) -> dict[str, object]:
    return {
        "verdict": str(verdict),
        "consistent": verdict.consistent,
        "authenticated": verdict.authenticated,
        "origin": verdict.origin,
        "tree_size": verdict.tree_size,
        "findings": [dataclasses.asdict(finding) | {"text": str(finding)} for finding in verdict.findings],
        "signers": _keys(verdict.signers),
        "not_roots": _keys(verdict.not_roots),
        "figures": dataclasses.asdict(verdict.figures) if verdict.figures else None,
        "scorecard": dataclasses.asdict(verdict.scorecard) if verdict.scorecard else None,
    }


def _keys(keys: Sequence[ClaimedKey]) -> list[dict[str, str]]:
    return [{"role": each.role, "name": each.name, "key_id": each.key.key_id} for each in keys]


VERIFY = Command(help="check an evidence file offline", add_arguments=_add_arguments, run=_run, description=DESCRIPTION)
