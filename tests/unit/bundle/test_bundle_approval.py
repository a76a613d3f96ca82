"""A person says yes or no to one digest, for a time; the author never approves alone."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.bundle.approval import (
    APPROVE,
    REJECT,
    Approval,
    VerifiedApproval,
    check_approved,
    sign_approval,
    verify_approval,
)
from holdfast.errors import BundleError, HoldfastError, TrustError
from holdfast.trust.envelope import sign_envelope, to_json
from holdfast.trust.keys import ED25519, PrivateKey
from holdfast.wire.messages import APPROVAL_TYPE, POLICY_TYPE

DAY_NS = 86_400_000_000_000
NOW = 1_790_000_000_000_000_000
DIGEST = "d" * 64
KEY, OTHER = PrivateKey.generate(ED25519), PrivateKey.generate(ED25519)
YES = Approval(DIGEST, APPROVE, "clinical lead", NOW, NOW + 30 * DAY_NS, "looks good")
DOCUMENT = sign_approval(YES, KEY)


def said(key: PrivateKey, decision: str, issued_ns: int = NOW, expires_ns: int = NOW + DAY_NS) -> VerifiedApproval:
    approval = dataclasses.replace(YES, decision=decision, issued_utc_ns=issued_ns, expires_utc_ns=expires_ns)
    return VerifiedApproval(approval, key.public_key.key_id)


def check(*approvals: VerifiedApproval, authors: tuple[str, ...] = ()) -> VerifiedApproval:
    return check_approved(approvals, DIGEST, author_key_ids=authors, now_utc_ns=NOW)


def test_approval_round_trip() -> None:
    verified = verify_approval(DOCUMENT, [OTHER.public_key, KEY.public_key])

    assert verified == VerifiedApproval(YES, KEY.public_key.key_id)


def test_approval_by_a_stranger_is_refused() -> None:
    with pytest.raises(TrustError):
        verify_approval(DOCUMENT, [OTHER.public_key])


def test_approval_made_as_a_policy_is_refused() -> None:
    payload = b"{}"

    with pytest.raises(TrustError, match=r"expected 'application/vnd.holdfast.approval"):
        verify_approval(to_json(sign_envelope(POLICY_TYPE, payload, KEY)), [KEY.public_key])


def test_approval_with_an_unknown_key_is_refused() -> None:
    payload = json.dumps({"schema": "holdfast/approval/v1", "and_also": "everything"}).encode()

    with pytest.raises(BundleError, match="unknown key 'and_also'"):
        verify_approval(to_json(sign_envelope(APPROVAL_TYPE, payload, KEY)), [KEY.public_key])


@pytest.mark.parametrize(
    "change", [{"subject_digest": "short"}, {"decision": "maybe"}, {"role": ""}, {"comment": "a\x00b"}]
)
def test_approval_with_a_defect_is_not_signed(change: dict[str, str]) -> None:
    with pytest.raises(BundleError):
        sign_approval(dataclasses.replace(YES, **change), KEY)  # type: ignore[arg-type]  # names of text fields


@given(st.integers(0, len(DOCUMENT) - 1), st.integers(1, 255))
def test_approval_with_any_byte_changed_is_refused(at: int, flip: int) -> None:
    changed = DOCUMENT[:at] + bytes([DOCUMENT[at] ^ flip]) + DOCUMENT[at + 1 :]

    with pytest.raises(HoldfastError):
        verify_approval(changed, [KEY.public_key])


def test_one_yes_lets_a_bundle_go_on() -> None:
    assert check(said(KEY, APPROVE)).key_id == KEY.public_key.key_id


def test_no_approval_is_a_no() -> None:
    with pytest.raises(TrustError, match="has no approval by a trusted key"):
        check()


def test_approval_of_another_bundle_is_a_no() -> None:
    other = VerifiedApproval(dataclasses.replace(YES, subject_digest="e" * 64), KEY.public_key.key_id)

    with pytest.raises(TrustError, match="has no approval"):
        check(other)


def test_approval_by_the_author_itself_is_a_no() -> None:
    with pytest.raises(TrustError, match="its own author only"):
        check(said(KEY, APPROVE), authors=(KEY.public_key.key_id,))


def test_approval_by_the_author_and_another_person_is_a_yes() -> None:
    approvals = (said(KEY, APPROVE), said(OTHER, APPROVE))

    assert check(*approvals, authors=(KEY.public_key.key_id,)).key_id == OTHER.public_key.key_id


def test_expired_approval_is_a_no() -> None:
    with pytest.raises(TrustError, match="has expired"):
        check(said(KEY, APPROVE, expires_ns=NOW))


def test_one_standing_no_outweighs_a_yes() -> None:
    with pytest.raises(TrustError, match="was rejected by key"):
        check(said(KEY, APPROVE), said(OTHER, REJECT))


def test_newest_decision_of_a_person_counts() -> None:
    no_then_yes = (said(KEY, REJECT, NOW - DAY_NS), said(KEY, APPROVE, NOW))
    yes_then_no = (said(KEY, APPROVE, NOW - DAY_NS), said(KEY, REJECT, NOW))

    assert check(*no_then_yes).approval.decision == APPROVE
    with pytest.raises(TrustError, match="was rejected"):
        check(*yes_then_no)


def test_no_in_the_same_second_as_a_yes_counts() -> None:
    for approvals in ((said(KEY, APPROVE), said(KEY, REJECT)), (said(KEY, REJECT), said(KEY, APPROVE))):
        with pytest.raises(TrustError, match="was rejected"):
            check(*approvals)


def test_expired_yes_does_not_bring_back_an_older_yes() -> None:
    older, newer = said(KEY, APPROVE, NOW - DAY_NS, NOW + DAY_NS), said(KEY, APPROVE, NOW - 1, NOW)

    with pytest.raises(TrustError, match="has expired"):
        check(older, newer)
