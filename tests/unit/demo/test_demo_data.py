"""The split of the digits: the same for the same seed, nobody shares a sample, none is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from holdfast_federation.demo.data import (
    AUTHOR_SAMPLES,
    GLOBAL_HOLDOUT_SAMPLES,
    SMALLEST_SHARE,
    Digits,
    Share,
    split_digits,
)

NAMES = ("north-1", "north-2", "south-1", "south-2")


def rows(share: Share) -> list[bytes]:
    """Each sample, its label with it, as something that can be compared."""
    return [image.tobytes() + bytes([label]) for image, label in zip(share.images, share.labels, strict=True)]


def everything(digits: Digits) -> list[bytes]:
    return [row for share in (digits.author, digits.holdout, *digits.devices.values()) for row in rows(share)]


def test_same_names_and_seed_give_the_same_shares() -> None:
    first, again = split_digits(NAMES, 7), split_digits(NAMES, 7)

    assert everything(first) == everything(again)


def test_another_seed_gives_others() -> None:
    first, other = split_digits(NAMES, 7), split_digits(NAMES, 8)

    assert rows(first.author) != rows(other.author)
    assert rows(first.devices["north-1"]) != rows(other.devices["north-1"])


@pytest.mark.parametrize("seed", [0, 7, 2**31])
@pytest.mark.parametrize("names", [NAMES[:2], NAMES, tuple(f"d{n}" for n in range(16))], ids=["2", "4", "16"])
def test_shares_are_disjoint_and_complete(names: tuple[str, ...], seed: int) -> None:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    whole = rows(Share((loaded.data / 16.0).astype(np.float32), loaded.target.astype(np.int64)))

    digits = split_digits(names, seed)

    # as bags: a sample dealt out twice, or lost, changes one of them
    assert sorted(everything(digits)) == sorted(whole)
    assert tuple(digits.devices) == names
    assert len(digits.author.labels) == AUTHOR_SAMPLES
    assert len(digits.holdout.labels) == GLOBAL_HOLDOUT_SAMPLES
    smallest = min(len(share.labels) for share in digits.devices.values())
    assert smallest >= min(SMALLEST_SHARE, 1_400 // (2 * len(names)))


def test_devices_differ_in_what_they_hold() -> None:
    digits = split_digits(NAMES, 7)

    counts = np.array([np.bincount(share.labels, minlength=10) for share in digits.devices.values()])
    shares = counts / counts.sum(axis=1, keepdims=True)
    assert np.abs(shares - shares.mean(axis=0)).max() > 0.1  # an even deal would stay below


def test_images_are_in_range_and_of_the_type_that_models_take() -> None:
    digits = split_digits(NAMES, 7)

    for share in (digits.author, digits.holdout, *digits.devices.values()):
        assert (share.images.dtype, share.images.shape[1:]) == (np.float32, (64,))
        assert (share.labels.dtype, share.labels.ndim) == (np.int64, 1)
        assert share.images.min() >= 0
        assert share.images.max() <= 1
        assert set(share.labels.tolist()) <= set(range(10))


def test_share_is_saved_as_a_device_reads_it(tmp_path: Path) -> None:
    share = split_digits(NAMES, 7).devices["south-2"]

    share.save(tmp_path / "samples.npz")

    with np.load(tmp_path / "samples.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["x", "y"]  # a model with one input may call it x
        assert np.array_equal(archive["x"], share.images)
        assert np.array_equal(archive["y"], share.labels)
