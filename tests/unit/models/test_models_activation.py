"""No single stolen key activates a model: author, person and coordinator must all have signed, for this device."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fakes import bundles
from tests.fakes.bundles import NOW_UTC_NS

from holdfast.bundle.approval import REJECT
from holdfast.bundle.manifest import Lineage
from holdfast.bundle.verify import VerifiedBundle, read_bundle
from holdfast.errors import FormatError, TrustError
from holdfast.models.activation import EXPIRED, check_activation, check_order
from holdfast.trust.keys import ECDSA_P256, PrivateKey
from holdfast.wire.messages import AssignmentDelivery

KEYS = bundles.make_keys()
TRUST = bundles.trust_of(KEYS)
BUNDLE = bundles.author_bundle(KEYS)


def weights(_: Lineage) -> bytes:
    return bundles.WEIGHT.tobytes()


def activate(
    bundle: bytes, delivery: AssignmentDelivery, *, installed: int = 0, now: int = NOW_UTC_NS
) -> VerifiedBundle:
    order = check_order(delivery, TRUST, installed_number=installed, now_utc_ns=now)
    return check_activation(order, read_bundle(bundle), TRUST, now_utc_ns=now, ancestor_weights=weights)


def test_bundle_with_all_three_signatures_is_activated() -> None:
    assert activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, 1)).signed_by == "author"


def test_candidate_with_all_three_signatures_is_activated() -> None:
    candidate = bundles.candidate_bundle(KEYS, BUNDLE)

    assert activate(candidate, bundles.delivery(KEYS, candidate, 2), installed=1).signed_by == "run"


def test_stolen_coordinator_keys_cannot_activate_a_model_of_their_own() -> None:
    files = bundles.bundle_files()
    forged = bundles.signed_bundle(bundles.manifest_of(files), files, KEYS.run)

    with pytest.raises(TrustError, match="signed by 0 of the 1 trusted keys"):
        activate(forged, bundles.delivery(KEYS, forged, 1))


def test_stolen_coordinator_keys_cannot_activate_a_candidate_without_a_person() -> None:
    candidate = bundles.candidate_bundle(KEYS, BUNDLE)
    by_coordinator = (bundles.approval(KEYS.run, candidate), bundles.approval(KEYS.assignment, candidate))

    with pytest.raises(TrustError, match="no approval by a trusted key"):
        activate(candidate, bundles.delivery(KEYS, candidate, 1, approvals=by_coordinator))


@pytest.mark.parametrize(
    ("defect", "message"),
    [
        ("none", "no approval by a trusted key"),
        ("of_another_bundle", "no approval by a trusted key"),
        ("by_the_author", "no approval by a trusted key"),
        ("expired", "has expired"),
        ("rejected", "was rejected"),
    ],
)
def test_bundle_without_a_standing_approval_is_refused(defect: str, message: str) -> None:
    approvals: dict[str, tuple[bytes, ...]] = {
        "none": (),
        "of_another_bundle": (bundles.approval(KEYS.approver, bundles.author_bundle(KEYS, version="9")),),
        "by_the_author": (bundles.approval(KEYS.author, BUNDLE),),
        "expired": (bundles.approval(KEYS.approver, BUNDLE, expires_utc_ns=NOW_UTC_NS),),
        "rejected": (
            bundles.approval(KEYS.approver, BUNDLE),
            bundles.approval(KEYS.approver, BUNDLE, decision=REJECT),
        ),
    }

    with pytest.raises(TrustError, match=message):
        activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, 1, approvals=approvals[defect]))


def test_author_who_is_also_a_pinned_approver_cannot_approve_alone() -> None:
    both = PrivateKey.generate(ECDSA_P256)
    keys = bundles.Keys(author=both, approver=both, run=KEYS.run, assignment=KEYS.assignment)
    trust = bundles.trust_of(keys)
    bundle = bundles.author_bundle(keys)
    order = check_order(bundles.delivery(keys, bundle, 1), trust, installed_number=0, now_utc_ns=NOW_UTC_NS)

    with pytest.raises(TrustError, match="its own author only"):
        check_activation(order, read_bundle(bundle), trust, now_utc_ns=NOW_UTC_NS, ancestor_weights=weights)


def test_author_of_the_ancestor_cannot_approve_a_candidate_alone() -> None:
    both = PrivateKey.generate(ECDSA_P256)
    keys = bundles.Keys(author=both, approver=both, run=KEYS.run, assignment=KEYS.assignment)
    trust = bundles.trust_of(keys)
    candidate = bundles.candidate_bundle(keys, bundles.author_bundle(keys))
    order = check_order(bundles.delivery(keys, candidate, 1), trust, installed_number=0, now_utc_ns=NOW_UTC_NS)

    with pytest.raises(TrustError, match="its own author only"):
        check_activation(order, read_bundle(candidate), trust, now_utc_ns=NOW_UTC_NS, ancestor_weights=weights)


@pytest.mark.parametrize("number", [0, 6, 7])
def test_assignment_with_an_older_number_is_refused(number: int) -> None:
    with pytest.raises(TrustError, match=f"number {number} is not newer than 7"):
        activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, number), installed=7)


def test_assignment_for_another_device_is_refused() -> None:
    with pytest.raises(TrustError, match="for device 'device-2'"):
        activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, 1, device_id="device-2"))


def test_assignment_signed_by_another_key_is_refused() -> None:
    stranger = bundles.Keys(KEYS.author, KEYS.approver, KEYS.run, assignment=KEYS.run)

    with pytest.raises(TrustError, match="signed by 0 of the 1 trusted keys"):
        activate(BUNDLE, bundles.delivery(stranger, BUNDLE, 1))


def test_expired_assignment_alarms_and_still_holds() -> None:
    delivery = bundles.delivery(KEYS, BUNDLE, 1, expires_utc_ns=NOW_UTC_NS)

    assert check_order(delivery, TRUST, installed_number=0, now_utc_ns=NOW_UTC_NS).alarms == (EXPIRED,)
    assert activate(BUNDLE, delivery).manifest.version == "1"


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "../../etc/passwd"},
        {"model": ""},
        {"blob_sha256": "../../outbox.db"},
        {"bundle_digest": "A" * 64},
        {"blob_size_bytes": 0},
        {"blob_size_bytes": 2**40},
    ],
)
def test_assignment_with_a_value_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        check_order(bundles.delivery(KEYS, BUNDLE, 1, **changes), TRUST, installed_number=0, now_utc_ns=NOW_UTC_NS)


def test_other_bundle_than_the_assigned_one_is_refused() -> None:
    with pytest.raises(TrustError, match="assigned was"):
        activate(bundles.author_bundle(KEYS, version="2"), bundles.delivery(KEYS, BUNDLE, 1))


def test_bundle_of_another_model_than_the_assigned_one_is_refused() -> None:
    with pytest.raises(TrustError, match="bundle is of model 'scale', assigned was 'triage'"):
        activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, 1, model="triage"))


def test_too_many_approvals_are_refused_unread() -> None:
    with pytest.raises(FormatError, match="at most 64"):
        activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, 1, approvals=(b"x",) * 65))


def test_damaged_approval_is_refused() -> None:
    with pytest.raises(FormatError):
        activate(BUNDLE, bundles.delivery(KEYS, BUNDLE, 1, approvals=(b"{}",)))
