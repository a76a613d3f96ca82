"""Only the site's key makes a policy, and only a newer, unexpired one replaces what is installed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.policies import DAY_NS, NOW_UTC_NS, make_policy

from holdfast.errors import HoldfastError, PolicyError
from holdfast.policy.document import read_policy, sign_policy, verify_policy
from holdfast.policy.rules import Policy, ReportRules, RoundRules, from_payload, policy_digest, to_payload
from holdfast.trust.envelope import Envelope, from_json, sign_envelope, to_json
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import APPROVAL_TYPE, POLICY_TYPE

SITE = PrivateKey.generate("ed25519")
OTHER = PrivateKey.generate("ed25519")


def verify(document: bytes, installed_number: int | None = None) -> Policy:
    return verify_policy(document, SITE.public_key, now_utc_ns=NOW_UTC_NS, installed_number=installed_number).policy


def test_a_signed_policy_is_read_back_with_its_digest() -> None:
    policy = make_policy()

    verified = verify_policy(sign_policy(policy, SITE), SITE.public_key, now_utc_ns=NOW_UTC_NS, installed_number=None)

    assert verified.policy == policy
    assert verified.digest == policy_digest(to_payload(policy))


def test_unsigned_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="not a signed document"):
        verify(to_payload(make_policy()))


def test_policy_with_no_signature_in_its_envelope_is_refused() -> None:
    document = json.dumps({"payload": "", "payloadType": POLICY_TYPE, "signatures": []}).encode()

    with pytest.raises(PolicyError):
        verify(document)


def test_policy_of_another_sites_key_is_refused() -> None:
    with pytest.raises(PolicyError, match="pinned key"):
        verify(sign_policy(make_policy(), OTHER))


def test_policy_claiming_the_sites_key_but_signed_by_another_is_refused() -> None:
    envelope = from_json(sign_policy(make_policy(), OTHER))
    signature = envelope.signatures[0]
    claimed = type(signature)(SITE.public_key.key_id, signature.signature)

    with pytest.raises(PolicyError, match="pinned key"):
        verify(to_json(Envelope(envelope.payload_type, envelope.payload, (claimed,))))


def test_an_approval_cannot_be_replayed_as_a_policy() -> None:
    document = to_json(sign_envelope(APPROVAL_TYPE, to_payload(make_policy()), SITE))

    with pytest.raises(PolicyError):
        verify(document)


def test_expired_policy_is_refused() -> None:
    policy = make_policy(issued_utc_ns=NOW_UTC_NS - 2 * DAY_NS, expires_utc_ns=NOW_UTC_NS - DAY_NS)

    with pytest.raises(PolicyError, match="expired"):
        verify(sign_policy(policy, SITE))


@pytest.mark.parametrize("number", [1, 2])
def test_older_or_same_number_is_refused(number: int) -> None:
    with pytest.raises(PolicyError, match="sign number 3 or later"):
        verify(sign_policy(make_policy(number=number), SITE), installed_number=2)


def test_newer_number_is_taken() -> None:
    assert verify(sign_policy(make_policy(number=3), SITE), installed_number=2).number == 3


def changed(path: str, value: object) -> bytes:
    document = json.loads(to_payload(make_policy()))
    *parents, last = path.split(".")
    target = document
    for parent in parents:
        target = target[parent]
    target[last] = value
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("loosened", True),
        ("rounds.allow_everything", True),
        ("reports.raw_rows", True),
        ("schema", "holdfast/policy/v2"),
        ("number", 0),
        ("number", 1.5),
        ("number", True),
        ("number", 10**30),
        ("issued", "yesterday"),
        ("expires", "2020-01-01T00:00:00Z"),
        ("reports.minimum_rows", 0),
        ("reports.data", "yes"),
        ("rounds.handlers", ["query"]),
        ("rounds.purposes", "quality"),
        ("rounds.minimum_cohort", 0),
        ("rounds.hours_utc", [1, 25]),
        ("rounds.hours_utc", [3, 3]),
        ("rounds.hours_utc", [1]),
        ("rounds.epsilon_budget", -1.0),
        ("rounds.epsilon_budget", float("nan")),
        ("byte_budgets", {"quality": -1}),
        ("byte_budgets", []),
        ("site", ""),
    ],
)
def test_bad_payload_is_refused_even_with_the_sites_signature(path: str, value: object) -> None:
    document = to_json(sign_envelope(POLICY_TYPE, changed(path, value), SITE))

    with pytest.raises(PolicyError):
        verify(document)


def test_payload_with_white_space_is_refused() -> None:
    payload = json.dumps(json.loads(to_payload(make_policy())), sort_keys=True).encode()

    with pytest.raises(PolicyError, match="canonical"):
        from_payload(payload)


policies = st.builds(
    Policy,
    site=st.text(st.characters(categories=("L", "N")), min_size=1, max_size=20),
    number=st.integers(1, 2**53 - 1),
    issued_utc_ns=st.integers(1_600_000_000, 1_800_000_000).map(lambda s: s * 1_000_000_000),
    expires_utc_ns=st.integers(1_900_000_000, 2_000_000_000).map(lambda s: s * 1_000_000_000),
    reports=st.builds(ReportRules, st.booleans(), st.booleans(), st.integers(1, 10_000)),
    rounds=st.builds(
        RoundRules,
        purposes=st.lists(st.text("abcäß-", min_size=1, max_size=8), max_size=4).map(tuple),
        handlers=st.sampled_from([(), ("train",), ("train", "evaluate")]),
        unsigned_runs=st.booleans(),
        minimum_cohort=st.integers(1, 100),
        minimum_rows=st.integers(1, 100),
        require_clip=st.booleans(),
        epsilon_budget=st.none() | st.floats(0, 1e6),
        maximum_rounds_per_day=st.none() | st.integers(0, 100),
        hours_utc=st.none() | st.sampled_from([(0, 24), (20, 6), (1, 2)]),
    ),
    byte_budgets=st.dictionaries(st.text("abc", min_size=1, max_size=4), st.integers(0, 2**40), max_size=3),
)


@given(policies)
def test_every_policy_survives_its_canonical_form(policy: Policy) -> None:
    assert from_payload(to_payload(policy)) == policy


@given(st.data())
def test_any_changed_byte_of_a_document_is_an_error(data: st.DataObject) -> None:
    document = bytearray(sign_policy(make_policy(), SITE))
    position = data.draw(st.integers(0, len(document) - 1))
    document[position] ^= data.draw(st.integers(1, 255))

    with pytest.raises(HoldfastError):
        read_policy(bytes(document), SITE.public_key)
