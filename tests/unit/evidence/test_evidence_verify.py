"""The verifier against one change at a time, each sealed again as a forger who holds the ledger key would."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable

import pytest
from tests.fakes.evidence_world import RUN_ID, START_NS, World, histogram, keys_of_all, operational_window

from holdfast.evidence.layout import ClaimedKey, canonical_json, write_evidence
from holdfast.evidence.verify import Verdict, verify_evidence
from holdfast.trust.envelope import Envelope, sign_envelope, to_json
from holdfast.trust.keys import PrivateKey
from holdfast.wire.container import write_container
from holdfast.wire.convert import from_bytes, to_bytes
from holdfast.wire.messages import (
    MANIFEST_TYPE,
    BundleRecord,
    LedgerEntry,
    PolicyChange,
    RoundRecord,
    Tombstone,
)

KEYS = keys_of_all()  # made once: no test changes them
HASH = hashlib.sha256(b"something else").digest()


def world() -> World:
    return World(dict(KEYS))


def verify(changed: World) -> Verdict:
    return verify_evidence(changed.export(), changed.roots())


def first(verdict: Verdict, step: str) -> str:
    """The text of that step's finding; fails with all findings if there is none."""
    found = [finding for finding in verdict.findings if finding.step == step]
    assert found, [str(finding) for finding in verdict.findings]
    assert not verdict.consistent
    return str(found[0])


def position(log: list[bytes], kind: str, number: int = 0) -> int:
    """Where the entry of that kind stands, the `number`th one."""
    return [index for index, data in enumerate(log) if from_bytes(LedgerEntry, data).kind == kind][number]


def replace_body(changed: World, kind: str, change: Callable[[bytes], bytes], number: int = 0) -> int:
    index = position(changed.log, kind, number)
    entry = from_bytes(LedgerEntry, changed.log[index])
    changed.log[index] = to_bytes(dataclasses.replace(entry, body=change(entry.body)))
    return index


def forge_signature(body: bytes) -> bytes:
    envelope = from_bytes(Envelope, body)
    signature = dataclasses.replace(envelope.signatures[0], signature=bytes(64))
    return to_bytes(dataclasses.replace(envelope, signatures=(signature,)))


@pytest.mark.parametrize("reason", ["", "unsigned_run"], ids=["taken", "refused"])
def test_verify_accepts_an_answer_to_a_run_that_nobody_offered(reason: str) -> None:
    changed = world()
    changed.answer("s1", b"", "unsigned-7", 1, reason=reason)

    verdict = verify(changed)

    assert (verdict.authenticated, verdict.findings) == (True, ())


def test_verify_accepts_honest_evidence_with_all_roots() -> None:
    honest = world()

    verdict = verify(honest)

    assert verdict.consistent
    assert verdict.authenticated
    assert verdict.findings == ()
    assert str(verdict) == "consistent and authenticated"
    assert verdict.tree_size == len(honest.log)
    assert {key.file for key in verdict.signers} == {key.file for key in honest.claimed_keys()}


def test_verify_without_roots_is_consistent_but_not_authenticated() -> None:
    verdict = verify_evidence(world().export())

    assert verdict.consistent
    assert not verdict.authenticated
    assert str(verdict) == "consistent, NOT authenticated"


@pytest.mark.parametrize("missing", sorted(KEYS.keys() - {"device-n1", "device-s1"}))
def test_verify_needs_every_key_that_signed_as_a_root(missing: str) -> None:
    honest = world()
    roots = [root for root in honest.roots() if root.key != KEYS[missing].public_key]

    verdict = verify_evidence(honest.export(), roots)

    assert verdict.consistent
    assert not verdict.authenticated
    assert [key.key for key in verdict.not_roots] == [KEYS[missing].public_key]


def test_verify_refuses_a_forgery_that_was_signed_again_with_other_keys() -> None:
    forged = World()  # the same story, told with keys of the forger's own

    verdict = verify_evidence(forged.export(), world().roots())

    assert verdict.consistent
    assert not verdict.authenticated
    assert {key.role for key in verdict.not_roots} == {"ledger", "run", "assignment", "site", "author", "approver"}


def test_verify_refuses_a_root_in_another_role() -> None:
    # an author who makes a log of his own signs its checkpoint with the one key that people trust him with
    forged = World(dict(KEYS) | {"ledger": KEYS["run"]})

    verdict = verify_evidence(forged.export(), world().roots())

    assert not verdict.authenticated
    assert [key.role for key in verdict.not_roots] == ["ledger"]


def test_verify_refuses_the_root_of_one_site_for_another() -> None:
    swapped = World(dict(KEYS) | {"site-north": KEYS["site-south"]})

    verdict = verify_evidence(swapped.export(), world().roots())

    assert not verdict.authenticated
    assert [key.name for key in verdict.not_roots] == ["north"]


def test_verify_names_an_entry_changed_under_an_old_checkpoint() -> None:
    honest = world().evidence()
    entries = list(honest.entries)
    entries[9] = entries[9][:-1] + bytes([entries[9][-1] ^ 1])

    verdict = verify_evidence(write_evidence(dataclasses.replace(honest, entries=tuple(entries))))

    assert "entry 9" in first(verdict, "inclusion")
    assert "root" in first(verdict, "root")


def test_verify_names_swapped_entries_under_an_old_checkpoint() -> None:
    honest = world().evidence()
    entries = [*honest.entries[:4], honest.entries[5], honest.entries[4], *honest.entries[6:]]

    verdict = verify_evidence(write_evidence(dataclasses.replace(honest, entries=tuple(entries))))

    assert "entry 4" in first(verdict, "inclusion")


def test_verify_finds_an_entry_dropped_under_an_old_checkpoint() -> None:
    honest = world().evidence()
    short = dataclasses.replace(
        honest, entries=honest.entries[:-1], proofs=honest.proofs[:-1], tree_size=honest.tree_size - 1
    )

    assert "entries" in first(verify_evidence(write_evidence(short)), "checkpoint")


def test_verify_finds_a_checkpoint_of_another_key() -> None:
    stranger = World(dict(KEYS) | {"ledger": PrivateKey.generate("ed25519")}).evidence()
    mixed = dataclasses.replace(world().evidence(), checkpoint=stranger.checkpoint)

    assert "signatures by" in first(verify_evidence(write_evidence(mixed)), "checkpoint")


def test_verify_finds_a_checkpoint_of_another_log() -> None:
    other = dataclasses.replace(world().evidence(), origin="elsewhere.example/ledger")

    first(verify_evidence(write_evidence(other)), "checkpoint")


def test_verify_needs_exactly_one_ledger_key() -> None:
    honest = world().evidence()
    second = ClaimedKey("ledger", "b", KEYS["run"].public_key)

    verdict = verify_evidence(write_evidence(dataclasses.replace(honest, keys=(*honest.keys, second))))

    assert "2 ledger keys" in first(verdict, "checkpoint")


def test_verify_finds_a_record_dropped_by_the_ledger_itself() -> None:
    dropped = world()
    del dropped.log[position(dropped.log, "report", 1 + 1)]

    text = first(verify(dropped), "chains")

    assert "records 2 to 2 are missing" in text
    assert "device n1" in text


def test_verify_finds_records_swapped_by_the_ledger_itself() -> None:
    swapped = world()
    one, other = position(swapped.log, "report", 2), position(swapped.log, "report", 4)
    swapped.log[one], swapped.log[other] = swapped.log[other], swapped.log[one]

    assert "are missing" in first(verify(swapped), "chains")


def test_verify_finds_a_forged_record_signature() -> None:
    forged = world()
    index = replace_body(forged, "report", forge_signature, 3)

    text = first(verify(forged), "chains")

    assert f"entry {index}" in text
    assert "field signature" in text


def test_verify_finds_a_record_of_another_device() -> None:
    forged = world()
    forged.keys["device-n1"], honest = PrivateKey.generate("ed25519"), forged.keys["device-n1"]
    index = forged.window("n1", {"ok": 1_000_000}, [0.001])
    forged.keys["device-n1"] = honest

    assert f"entry {index}" in first(verify(forged), "chains")


def test_verify_finds_a_record_of_a_device_that_was_never_enrolled() -> None:
    forged = world()
    forged.keys["device-x9"] = PrivateKey.generate("ed25519")
    forged.window("x9", {"ok": 5}, [0.001])

    assert "no key is enrolled" in first(verify(forged), "chains")


def test_verify_finds_equivocation() -> None:
    split = world()
    head = split.heads["n1"]
    split.window("n1", {"ok": 5}, [0.001])
    split.heads["n1"] = head
    index = split.window("n1", {"ok": 500}, [0.001])

    text = first(verify(split), "chains")

    assert "equivocation" in text
    assert f"entry {index}, device n1, seq {head[0] + 1}" in text


def test_verify_finds_a_record_that_follows_another_than_it_says() -> None:
    broken = world()
    envelope = broken.record("s1", operational_window({"ok": 1}, [0.1]), prev_hash=HASH)
    broken.add("report", "s1", to_bytes(envelope))

    assert "field prev_hash" in first(verify(broken), "chains")


def test_verify_counts_a_recorded_fork_as_evidence_about_the_device() -> None:
    forked = world()
    head_seq = forked.heads["n1"][0]
    second = forked.record("n1", operational_window({"ok": 999}, [0.1]), seq=head_seq, prev_hash=HASH)
    forked.add("fork", "n1", to_bytes(second))

    verdict = verify(forked)

    assert verdict.authenticated
    assert verdict.figures is not None
    assert verdict.figures.devices["n1"].forks == 1
    assert verdict.figures.devices["n1"].activity.requests["ok"] == 50


def test_verify_finds_an_honest_record_that_was_called_a_fork() -> None:
    hidden = world()
    envelope = hidden.record("n1", operational_window({"HF-REQUEST-003": 999}, [0.1]))
    hidden.add("fork", "n1", to_bytes(envelope))

    assert "recorded as a fork" in first(verify(hidden), "chains")


def tombstone(first_seq: int, last_seq: int, last_hash: bytes = HASH) -> Tombstone:
    return Tombstone(first_seq, last_seq, last_hash, {"ok": 7}, histogram([0.05] * 7))


def test_verify_accepts_a_tombstone_in_the_place_of_dropped_records() -> None:
    bounded = world()
    head_seq, head_hash = bounded.heads["s1"]
    grave = bounded.record("s1", tombstone(head_seq + 1, head_seq + 3), seq=head_seq + 3, prev_hash=head_hash)
    bounded.add("report", "s1", to_bytes(grave))
    bounded.heads["s1"] = (head_seq + 3, HASH)
    bounded.window("s1", {"ok": 1}, [0.05])

    verdict = verify(bounded)

    assert verdict.authenticated, verdict.findings
    assert verdict.figures is not None
    assert verdict.figures.devices["s1"].dropped == 3
    assert verdict.figures.devices["s1"].activity.requests == {"ok": 60 + 7 + 1}
    assert verdict.figures.devices["s1"].activity.latency.count == 2 + 7 + 1


@pytest.mark.parametrize(("low", "high"), [(1, 2), (0, 1)], ids=["starts_late", "covers_logged_records"])
def test_verify_finds_a_tombstone_that_does_not_fit_its_gap(low: int, high: int) -> None:
    wrong = world()
    head_seq, head_hash = wrong.heads["s1"]
    grave = wrong.record("s1", tombstone(head_seq + 1 + low, head_seq + 1 + high), seq=head_seq + 1 + high)
    wrong.add("report", "s1", to_bytes(grave))
    assert head_hash != HASH

    if low == 0:  # it fits, but the next record does not follow what it dropped
        wrong.heads["s1"] = (head_seq + 2, hashlib.sha256(b"a third thing").digest())
        wrong.window("s1", {"ok": 1}, [0.1])

    first(verify(wrong), "chains")


def test_verify_finds_a_second_key_for_one_device() -> None:
    doubled = world()
    doubled.keys["device-n1"] = PrivateKey.generate("ed25519")
    doubled.enrol("n1", "north")

    assert "a second key" in first(verify(doubled), "enrolments")


def test_verify_accepts_a_device_that_enrolled_again_with_its_key() -> None:
    again = world()
    again.enrol("n1", "north")

    assert verify(again).authenticated


def test_verify_finds_an_enrolment_that_moves_a_device_to_another_site() -> None:
    moved = world()
    moved.enrol("n1", "south", epoch=2)

    assert "moved from site" in first(verify(moved), "enrolments")


def test_verify_finds_a_bundle_that_nobody_signed() -> None:
    forged = world()
    forged.bundle("3", HASH, "site-north")

    assert "bundles" in first(verify(forged), "bundles")


def test_verify_finds_a_bundle_by_the_run_key_without_an_authors_ancestor() -> None:
    stolen = world()
    stolen.bundle("3", HASH, "run")

    assert "not signed by an author" in first(verify(stolen), "bundles")


def test_verify_finds_a_signature_over_another_manifest() -> None:
    forged = world()
    manifest = canonical_json({"name": "digits", "version": "1"})
    signature = to_json(sign_envelope(MANIFEST_TYPE, manifest, KEYS["author"]))
    forged.add("bundle", "x", to_bytes(BundleRecord(manifest + b" ", signature, "cd" * 32)))

    assert "another manifest" in first(verify(forged), "bundles")


def test_verify_finds_an_approval_by_the_author() -> None:
    forged = world()
    index = forged.approve(forged.version_1, signer="author")

    assert f"entry {index}" in first(verify(forged), "approvals")


def test_verify_finds_an_assignment_by_another_key() -> None:
    forged = world()
    index = forged.assign("s1", forged.version_2, 2, signer="run")

    assert f"entry {index}" in first(verify(forged), "assignments")


def test_verify_finds_an_assignment_without_approval() -> None:
    early = world()
    digest = early.bundle("3", HASH, "author")
    early.approve(digest, decision="reject")
    early.assign("s1", digest, 2)

    assert "approved before" in first(verify(early), "assignments")


def test_verify_finds_an_assignment_number_used_again() -> None:
    repeated = world()
    repeated.assign("n1", repeated.version_1, 1)

    assert "numbers only rise" in first(verify(repeated), "assignments")


def test_verify_finds_an_offer_by_another_key() -> None:
    forged = world()
    forged.offer("run-2", 1, "train", forged.version_2, HASH, signer="assignment")

    first(verify(forged), "offers")


def test_verify_finds_an_answer_to_an_offer_that_the_log_hides() -> None:
    hidden = world()
    hidden.answer("n1", HASH, "run-9", 1, reason="purpose_not_allowed")

    assert "does not hold" in first(verify(hidden), "offers")


def test_verify_finds_an_update_signed_by_another_device() -> None:
    forged = world()
    offer = forged.offer("evaluate-3", 1, "evaluate", forged.version_2, forged_weights(forged))
    forged.keys["device-s1"] = KEYS["device-n1"]
    index = forged.update("s1", offer, "evaluate-3", 1, 100, {"correct": 100.0, "count": 100.0})

    assert f"entry {index}" in first(verify(forged), "updates")


def forged_weights(changed: World) -> bytes:
    """The weights of version 2."""
    record = from_bytes(BundleRecord, from_bytes(LedgerEntry, changed.log[position(changed.log, "bundle", 1)]).body)
    return bytes.fromhex(json.loads(record.manifest)["files"]["weights.bin"]["sha256"])


def test_verify_finds_an_update_replayed_from_another_round() -> None:
    replayed = world()
    offer = replayed.offer("evaluate-3", 1, "evaluate", replayed.version_2, HASH)
    replayed.update("n1", offer, "evaluate-3", 2, 100, {})

    assert "its offer is for another" in first(verify(replayed), "updates")


def test_verify_finds_an_update_above_its_sample_bound() -> None:
    greedy = world()
    offer = greedy.offer("evaluate-3", 1, "evaluate", greedy.version_2, HASH)
    greedy.update("n1", offer, "evaluate-3", 1, 501, {})

    assert "its offer allows 500" in first(verify(greedy), "updates")


@pytest.mark.parametrize("signer", ["site-south", "ledger"])
def test_verify_finds_a_policy_by_another_key_than_its_site(signer: str) -> None:
    loosened = world()
    index = loosened.policy("n1", "north", number=2, signer=signer)

    assert f"entry {index}, device n1" in first(verify(loosened), "policies")


def test_verify_finds_a_policy_of_an_older_number() -> None:
    older = world()
    older.policy("n1", "north", number=1)

    assert "numbers only rise" in first(verify(older), "policies")


def test_verify_finds_a_policy_whose_digest_is_another() -> None:
    wrong = world()
    payload = canonical_json({"schema": "holdfast/policy/v1", "site": "north", "number": 2})
    document = to_json(sign_envelope("application/vnd.holdfast.policy.v1+json", payload, KEYS["site-north"]))
    wrong.report("n1", PolicyChange("00" * 32, 2, document))

    assert "the record names policy" in first(verify(wrong), "policies")


def test_verify_finds_weights_that_are_not_the_result_of_the_round_before() -> None:
    broken = world()
    broken.offer(RUN_ID, 3, "train", broken.version_1, HASH)

    assert "the result before it" in first(verify(broken), "rounds")


def test_verify_finds_a_first_round_that_starts_from_other_weights_than_its_base() -> None:
    broken = world()
    broken.offer("run-2", 1, "train", broken.version_1, HASH)

    assert "round 1 of 'run-2'" in first(verify(broken), "rounds")


def test_verify_finds_a_candidate_whose_weights_no_round_made() -> None:
    foreign = world()
    foreign.bundle("3", HASH, "run", run_id=RUN_ID, parent=foreign.version_1)

    assert "no round of it made its weights" in first(verify(foreign), "rounds")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contributed": ("n1", "s1")}, "no accepted statement"),
        ({"invited": ("s1",)}, "not invited"),
        ({"sample_count": 10_000}, "its statements say 100"),
    ],
    ids=["participant_without_statement", "participant_not_invited", "sample_count_inflated"],
)
def test_verify_finds_a_round_that_misreports(changes: dict[str, object], message: str) -> None:
    wrong = world()

    def change(body: bytes) -> bytes:
        return to_bytes(dataclasses.replace(from_bytes(RoundRecord, body), **changes))  # type: ignore[arg-type]

    replace_body(wrong, "round", change, 1)

    assert message in first(verify(wrong), "rounds")


def test_verify_finds_a_broken_promise() -> None:
    broken = world()
    broken.window("n1", {"ok": 1}, [0.1])
    broken.promise("n1")
    broken.log.pop()

    assert "is not in it" in first(verify(broken), "promises")


def test_verify_finds_a_promise_by_another_key() -> None:
    forged = world()
    forged.keys["ledger"] = KEYS["run"]
    forged.promise("n1")
    forged.keys["ledger"] = KEYS["ledger"]

    first(verify(forged), "promises")


def test_verify_finds_a_wrong_figure_and_names_it() -> None:
    honest = world().evidence()
    figures = json.loads(honest.figures)
    figures["devices"]["s1"]["activity"]["availability"]["hits"] = 61

    verdict = verify_evidence(write_evidence(dataclasses.replace(honest, figures=canonical_json(figures))))

    text = first(verdict, "figures")
    assert "/devices/s1/activity/availability/hits is claimed as 61, the entries give 60" in text


def test_verify_finds_a_wrong_scorecard_value_and_names_it() -> None:
    honest = world().evidence()
    assert honest.scorecard is not None
    card = json.loads(honest.scorecard)
    card["values"]["worth_it"] = "no"

    verdict = verify_evidence(write_evidence(dataclasses.replace(honest, scorecard=canonical_json(card))))

    assert "/worth_it is claimed as 'no', the entries give 'yes'" in first(verdict, "scorecard")


def test_verify_finds_a_scorecard_over_a_figure_that_does_not_exist() -> None:
    honest = world().evidence()
    assert honest.scorecard is not None
    card = json.loads(honest.scorecard)
    card["definition"]["spec"]["kpis"]["p99"]["source"] = "fleet/latency/p100_s"

    verdict = verify_evidence(write_evidence(dataclasses.replace(honest, scorecard=canonical_json(card))))

    assert "p100_s" in first(verdict, "scorecard")


def test_verify_counts_but_does_not_interpret_kinds_it_does_not_know() -> None:
    newer = world()
    newer.add("revocation", "n1", b"lost")

    verdict = verify(newer)

    assert verdict.authenticated
    assert verdict.figures is not None
    assert verdict.figures.entries["revocation"] == 1


def test_verify_skips_a_signed_histogram_that_contradicts_itself() -> None:
    nonsense = world()
    window = operational_window({"ok": 3}, [0.1, 0.2, 0.3])
    model = dataclasses.replace(window.models[0], latency_s=dataclasses.replace(window.models[0].latency_s, count=9))
    nonsense.report("n1", dataclasses.replace(window, models=(model,)))

    verdict = verify(nonsense)

    assert verdict.authenticated
    assert verdict.figures is not None
    assert verdict.figures.devices["n1"].unusable == 1
    assert verdict.figures.devices["n1"].activity.latency.count == 4


def test_verify_finds_an_entry_that_is_no_entry() -> None:
    damaged = world()
    replace_body(damaged, "report", lambda body: b"\xff" + body)
    evidence = dataclasses.replace(world().evidence(), entries=tuple(damaged.log))

    assert "entry" in first(verify_evidence(write_evidence(evidence)), "entries")


def test_verify_refuses_a_container_of_another_kind() -> None:
    verdict = verify_evidence(write_container("bundle", {"meta.json": b"{}"}))

    assert "kind" in first(verdict, "container")


@pytest.mark.parametrize("keep", [0, 7, 100, 5_000, -1])
def test_verify_refuses_a_truncated_file(keep: int) -> None:
    first(verify_evidence(world().export()[:keep]), "container")


def test_verify_says_when_it_was_exported_only_as_a_claim() -> None:
    # declared in the verifier's docstring: nothing signs the time of the export
    later = dataclasses.replace(world().evidence(), exported_utc_ns=START_NS + 1)

    assert verify_evidence(write_evidence(later), world().roots()).authenticated
