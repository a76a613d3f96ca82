"""The offline verifier: bytes in, verdict out. Every step names the first thing that does not hold.

Proven by "consistent": the file is whole; one ledger key signed the root over exactly these entries; every record,
approval, assignment, offer, accepted update and policy is signed by the key of its role; no device's chain has a gap
or a fork; the weights of every run form a chain; the figures and the scorecard follow from the entries.
Proven by "authenticated", in addition: all of these keys are the ones you gave as roots. A file that somebody made up
and signed with keys of their own is consistent, so without roots the verdict is no proof of origin.

Not proven: that a device told the truth about what it measured; that a device is more than a key which the coordinator
enrolled; that the log is the only one its coordinator shows (compare checkpoints), or goes on to today; the time of the
export; and what a scorecard declares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from holdfast.errors import FormatError, TrustError
from holdfast.evidence import chains, log, rounds, statements
from holdfast.evidence.entries import Entry, parse_entries
from holdfast.evidence.figures import Figures
from holdfast.evidence.findings import Finding, Place
from holdfast.evidence.layout import (
    ENTRIES,
    FIGURES,
    LEDGER,
    SCORECARD,
    ClaimedKey,
    Evidence,
    canonical_json,
    parse_json,
    read_evidence,
)
from holdfast.evidence.locate import locate_change
from holdfast.evidence.roots import Root, not_vouched
from holdfast.evidence.scorecard import Scorecard, evaluate, parse_definition
from holdfast.evidence.tally import compute_figures
from holdfast.trust.envelope import from_json
from holdfast.wire.messages import Report

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier may say about one evidence file.

    Attributes:
        findings: the first finding of each step that does not hold, in the order of the steps.
        signers: the claimed keys that signed something in the file; not_roots: those of them that are no roots.
        figures, scorecard: as derived from the entries, not as claimed; None if they could not be derived.
    """

    consistent: bool
    authenticated: bool
    findings: tuple[Finding, ...] = ()
    signers: tuple[ClaimedKey, ...] = ()
    not_roots: tuple[ClaimedKey, ...] = ()
    origin: str = ""
    tree_size: int = 0
    figures: Figures | None = None
    scorecard: Scorecard | None = None

    def __str__(self) -> str:
        if not self.consistent:
            return "NOT consistent"
        return "consistent and authenticated" if self.authenticated else "consistent, NOT authenticated"


def verify_evidence(data: bytes, roots: Sequence[Root] = (), *, progress: Progress | None = None) -> Verdict:
    """Check an evidence file from its bytes alone.

    Args:
        roots: the keys you trust, by role; without them nothing is authenticated.
        progress: called with the name of each step before it runs.
    """
    say = progress or (lambda step: None)
    say("container")
    try:
        evidence = read_evidence(data)
    except (FormatError, TrustError) as error:
        located = locate_change(data)
        place, message = located or (Place(), "")
        return Verdict(False, False, (Finding("container", f"{error}; {message}" if message else str(error), place),))
    return _verify(evidence, roots, say)


def _verify(evidence: Evidence, roots: Sequence[Root], say: Progress) -> Verdict:
    findings = list(_run(_log_steps(evidence), say))
    say("entries")
    try:
        entries = tuple(parse_entries(evidence.entries))
    except FormatError as error:
        findings.append(Finding("entries", str(error), Place(ENTRIES)))
        return Verdict(False, False, tuple(findings), origin=evidence.origin, tree_size=evidence.tree_size)
    findings += _run(_entry_steps(evidence, entries), say)
    say("figures")
    figures, scorecard, wrong = _derive(evidence, entries)
    findings += wrong
    signers = _signers(evidence, entries)
    not_roots = not_vouched(signers, roots)
    return Verdict(
        consistent=not findings,
        authenticated=not findings and bool(roots) and not not_roots,
        findings=tuple(findings),
        signers=signers,
        not_roots=not_roots,
        origin=evidence.origin,
        tree_size=evidence.tree_size,
        figures=figures,
        scorecard=scorecard,
    )


_Step = tuple[str, Callable[[], Iterator[Finding]]]


def _log_steps(evidence: Evidence) -> Iterator[_Step]:
    yield "checkpoint", lambda: log.check_checkpoint(evidence)
    if next(log.check_checkpoint(evidence), None) is None:  # without a signed root there is nothing to prove against
        # inclusion first: it names the entry, where the root only says that something differs
        yield "inclusion", lambda: log.check_inclusion(evidence)
        yield "root", lambda: log.check_root(evidence)


def _entry_steps(evidence: Evidence, entries: Sequence[Entry]) -> Iterator[_Step]:
    yield "enrolments", lambda: chains.check_enrolments(entries)
    yield "chains", lambda: chains.check_chains(entries)
    yield "bundles", lambda: statements.check_bundles(evidence, entries)
    yield "approvals", lambda: statements.check_approvals(evidence, entries)
    yield "assignments", lambda: statements.check_assignments(evidence, entries)
    yield "offers", lambda: statements.check_offers(evidence, entries)
    yield "updates", lambda: statements.check_updates(entries)
    yield "policies", lambda: statements.check_policies(evidence, entries)
    yield "rounds", lambda: rounds.check_rounds(entries)
    yield "promises", lambda: log.check_promises(evidence, entries)


def _run(steps: Iterator[_Step], say: Progress) -> Iterator[Finding]:
    for name, step in steps:
        say(name)
        first = next(step(), None)
        if first is not None:
            yield first


def _derive(evidence: Evidence, entries: Sequence[Entry]) -> tuple[Figures, Scorecard | None, list[Finding]]:
    """Figures and scorecard computed again, and what of the claimed ones differs."""
    figures, findings = compute_figures(entries), []
    if figures.to_json() != evidence.figures:
        findings.append(Finding("figures", _difference(evidence.figures, figures.to_json(), FIGURES), Place(FIGURES)))
    if evidence.scorecard is None:
        return figures, None, findings
    try:
        claimed = parse_json(evidence.scorecard, SCORECARD)
        if not isinstance(claimed, dict) or set(claimed) != {"definition", "values"}:
            raise FormatError(f"{SCORECARD} does not have exactly the fields ['definition', 'values']")
        scorecard = evaluate(parse_definition(claimed["definition"]), figures)
    except FormatError as error:
        return figures, None, [*findings, Finding("scorecard", str(error), Place(SCORECARD))]
    values = canonical_json(claimed["values"])
    if values != scorecard.to_json():
        message = _difference(values, scorecard.to_json(), SCORECARD)
        findings.append(Finding("scorecard", message, Place(SCORECARD)))
    return figures, scorecard, findings


def _difference(claimed: bytes, derived: bytes, what: str) -> str:
    """The first JSON path where the claim differs from what follows from the entries."""
    try:
        found = _first_difference(parse_json(claimed, what), parse_json(derived, what), "")
    except FormatError as error:
        return str(error)
    if found is None:
        return "it differs from what follows from the entries"
    path, said, right = found
    return f"{path or '/'} is claimed as {said!r:.80}, the entries give {right!r:.80}"


def _first_difference(said: object, right: object, path: str) -> tuple[str, object, object] | None:
    if isinstance(said, dict) and isinstance(right, dict):
        for key in sorted(said.keys() | right.keys()):
            found = _first_difference(said.get(key, "(nothing)"), right.get(key, "(nothing)"), f"{path}/{key}")
            if found is not None:
                return found
        return None
    if isinstance(said, list) and isinstance(right, list) and len(said) == len(right):
        for number, (one, other) in enumerate(zip(said, right, strict=True)):
            found = _first_difference(one, other, f"{path}/{number}")
            if found is not None:
                return found
        return None
    return None if type(said) is type(right) and said == right else (path, said, right)


def _signers(evidence: Evidence, entries: Sequence[Entry]) -> tuple[ClaimedKey, ...]:
    """The claimed keys that signed something here; signatures are found by key id, so no other key was used."""
    ids: set[str] = set()
    for entry in entries:
        ids |= {signature.key_id for signature in entry.envelope.signatures} if entry.envelope else set()
        change = entry.fact.policy_change if isinstance(entry.fact, Report) else None
        try:
            ids |= {signature.key_id for signature in from_json(change.document).signatures} if change else set()
        except FormatError:
            continue  # check_policies names it
    return tuple(each for each in evidence.keys if each.role == LEDGER or each.key.key_id in ids)
