"""What was left out of an update is there for the next one, once, whatever happens in between."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from holdfast.errors import StateError
from holdfast.learn.remembered import MAX_FILES
from holdfast.learn.residuals import ResidualStore
from holdfast.update.layout import FlatLayout

LAYOUT = FlatLayout.from_shapes([("w", (3,))])
OLD, NEW = np.array([1, 2, 3], np.float32), np.array([4, 5, 6], np.float32)


def test_first_residual_is_zero(tmp_path: Path) -> None:
    np.testing.assert_array_equal(ResidualStore(tmp_path / "none").before("m", LAYOUT, "aa"), np.zeros(3))


def test_next_offer_gets_what_was_left_and_the_same_offer_what_was_there_before(tmp_path: Path) -> None:
    ResidualStore(tmp_path).keep("m", LAYOUT, "aa", before=OLD, after=NEW)

    again = ResidualStore(tmp_path)

    np.testing.assert_array_equal(again.before("m", LAYOUT, "bb"), NEW)
    np.testing.assert_array_equal(again.before("m", LAYOUT, "aa"), OLD)


def test_residuals_of_other_models_and_layouts_are_apart(tmp_path: Path) -> None:
    store = ResidualStore(tmp_path)
    store.keep("m", LAYOUT, "aa", before=OLD, after=NEW)

    other = FlatLayout.from_shapes([("v", (3,))])

    assert not store.before("other", LAYOUT, "bb").any()
    assert not store.before("m", other, "bb").any()


@pytest.mark.parametrize("damage", [b"", b"HOLDFAST", b"\0" * 200])
def test_damaged_file_is_a_residual_of_zeros(tmp_path: Path, damage: bytes) -> None:
    store = ResidualStore(tmp_path)
    store.keep("m", LAYOUT, "aa", before=OLD, after=NEW)
    (path,) = tmp_path.glob("*.residual")
    path.write_bytes(damage)

    assert not store.before("m", LAYOUT, "bb").any()


def test_files_are_bounded_and_the_oldest_goes_first(tmp_path: Path) -> None:
    store = ResidualStore(tmp_path)
    for number in range(MAX_FILES + 2):
        store.keep(f"m{number}", LAYOUT, "aa", before=OLD, after=NEW)
        for age, path in enumerate(sorted(tmp_path.glob("*.residual"), key=lambda each: each.stat().st_mtime_ns)):
            os.utime(path, ns=(age, age))

    assert len(list(tmp_path.glob("*.residual"))) == MAX_FILES
    assert not store.before("m0", LAYOUT, "bb").any()
    assert store.before(f"m{MAX_FILES + 1}", LAYOUT, "bb").any()


def test_full_disk_is_an_error_before_anything_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    store = ResidualStore(tmp_path)
    store.keep("m", LAYOUT, "aa", before=OLD, after=NEW)
    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(StateError, match="No space"):
        store.keep("m", LAYOUT, "bb", before=NEW, after=OLD)

    np.testing.assert_array_equal(store.before("m", LAYOUT, "bb"), NEW)
