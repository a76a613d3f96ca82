"""A device obeys only its own site, only forwards in number, and tells every change in its chain."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fakes.clock import FakeClock
from tests.fakes.policies import DAY_NS, NOW_UTC_NS, make_policy, make_rounds

from holdfast.errors import PolicyError, StateError
from holdfast.identity.policy_store import PolicyStore
from holdfast.lifecycle import Stop
from holdfast.policy.document import sign_policy
from holdfast.policy.rules import ReportRules
from holdfast.trust.keys import PrivateKey
from holdfast.wire.messages import PolicyChange

SITE, OTHER = PrivateKey.generate("ed25519"), PrivateKey.generate("ed25519")


class Chain:
    def __init__(self) -> None:
        self.changes: list[PolicyChange] = []

    def record(self, change: PolicyChange) -> int:
        self.changes.append(change)
        return len(self.changes)


def signed(number: int, key: PrivateKey = SITE, **changes: object) -> bytes:
    return sign_policy(make_policy(number=number, **changes), key)


def open_store(folder: Path) -> PolicyStore:
    return PolicyStore(folder, SITE.public_key, FakeClock())


def test_an_installed_policy_is_in_force_told_and_survives_a_restart(tmp_path: Path) -> None:
    chain, store = Chain(), open_store(tmp_path)
    assert (store.current(), store.digest()) == (None, "")

    installed = store.install(signed(1), chain.record)

    assert open_store(tmp_path).current() == installed
    assert store.digest() == installed.digest
    assert chain.changes == [PolicyChange(installed.digest, 1, signed(1))]


BAD = {
    "unsigned": (b'{"site":"north"}', "not a signed document"),
    "by_another_key": (signed(2, OTHER), "pinned key"),
    "older_number": (signed(1), "not newer"),
    "same_number_loosened": (signed(1, rounds=make_rounds(minimum_cohort=1)), "not newer"),
    "loosened_by_the_coordinator": (signed(3, OTHER, reports=ReportRules(data=True, minimum_rows=1)), "pinned key"),
    "expired": (signed(3, issued_utc_ns=NOW_UTC_NS - 2 * DAY_NS, expires_utc_ns=NOW_UTC_NS - DAY_NS), "expired"),
    "cut": (signed(3)[:-10], "not a signed document"),
    "too_large": (b"x" * 200_000, "policy"),
}


@pytest.mark.parametrize("defect", sorted(BAD))
def test_a_bad_policy_changes_nothing(tmp_path: Path, defect: str) -> None:
    document, message = BAD[defect]
    chain, store = Chain(), open_store(tmp_path)
    if defect != "older_number":
        store.install(signed(1), chain.record)
    else:
        store.install(signed(2), chain.record)
    before = store.current()

    with pytest.raises(PolicyError, match=message):
        store.install(document, chain.record)

    assert store.current() == before
    assert open_store(tmp_path).current() == before
    assert len(chain.changes) == 1


def test_the_policy_in_force_may_be_given_again(tmp_path: Path) -> None:
    chain, store = Chain(), open_store(tmp_path)
    for _ in range(2):
        store.install(signed(1), chain.record)

    assert len(chain.changes) == 1


def test_a_dropped_policy_is_installed_and_a_bad_one_set_aside(tmp_path: Path) -> None:
    chain, store = Chain(), open_store(tmp_path)
    (tmp_path / "a.json").write_bytes(signed(2))
    (tmp_path / "b.json").write_bytes(signed(3, OTHER))

    store.scan(chain.record)
    assert (tmp_path / "b.json").exists()  # it might be a copy that is not finished yet
    store.scan(chain.record)

    assert [change.number for change in chain.changes] == [2]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.refused", "installed.json", "recorded"]


def test_a_policy_that_is_still_being_copied_is_not_set_aside(tmp_path: Path) -> None:
    chain, store = Chain(), open_store(tmp_path)
    for end in (0, 10, 100, len(signed(1))):
        (tmp_path / "a.json").write_bytes(signed(1)[:end])
        store.scan(chain.record)

    assert [change.number for change in chain.changes] == [1]


def test_a_change_whose_telling_was_cut_off_is_told_at_the_start(tmp_path: Path) -> None:
    def crash(change: PolicyChange) -> int:
        raise StateError("power cut")

    with pytest.raises(StateError):
        open_store(tmp_path).install(signed(1), crash)
    chain = Chain()
    store = open_store(tmp_path)

    store.record_installed(chain.record)
    store.record_installed(chain.record)

    assert [change.number for change in chain.changes] == [1]


def test_an_installed_policy_that_was_tampered_with_stops_the_start(tmp_path: Path) -> None:
    open_store(tmp_path).install(signed(1), Chain().record)
    (tmp_path / "installed.json").write_bytes(signed(9, OTHER))

    with pytest.raises(StateError, match="does not hold"):
        open_store(tmp_path)


def test_watching_goes_on_after_an_error(tmp_path: Path) -> None:
    stop = Stop(FakeClock())
    store = open_store(tmp_path)
    (tmp_path / "a.json").write_bytes(signed(1))
    calls = []

    def record(change: PolicyChange) -> int:
        calls.append(change)
        if len(calls) == 1:
            raise StateError("disk full")
        stop.set()
        return 1

    store.watch(record, stop)

    assert len(calls) == 2
