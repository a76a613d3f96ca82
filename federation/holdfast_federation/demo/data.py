"""Who holds which handwritten digits: the author, each device, and nobody (the global hold-out).

scikit-learn ships the 1,797 digits of the UCI "Optical Recognition of Handwritten Digits" test set inside its
package; nothing is downloaded. Images are float32[64] in [0, 1], labels int64 in 0..9. The devices' shares are drawn
per label from a Dirichlet distribution, as federated-learning papers do to make sites differ (Hsu et al. 2019,
arXiv 1909.06335, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

AUTHOR_SAMPLES = 100
GLOBAL_HOLDOUT_SAMPLES = 297  # leaves 1,400 for the devices
ALPHA = 0.5  # of the Dirichlet distribution; smaller = more unlike each other
SMALLEST_SHARE = 120  # samples; a device below it could not answer for a hold-out of its own
MAX_DRAWS = 1_000
LABELS = tuple(str(digit) for digit in range(10))

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Share:
    """Images float32[samples, 64] in [0, 1] and labels int64[samples] in 0..9."""

    images: Images
    labels: Labels

    def save(self, path: Path) -> None:
        """Write arrays `x` and `y` in the form that a device reads."""
        np.savez(path, x=self.images, y=self.labels)


@dataclass(frozen=True, slots=True)
class Digits:
    author: Share
    devices: Mapping[str, Share]
    holdout: Share


def split_digits(device_names: tuple[str, ...], seed: int) -> Digits:
    """Deal the digits out; the same names and seed give the same shares."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images = (loaded.data / 16.0).astype(np.float32)
    labels = loaded.target.astype(np.int64)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    author, holdout, rest = np.split(order, [AUTHOR_SAMPLES, AUTHOR_SAMPLES + GLOBAL_HOLDOUT_SAMPLES])
    shares = _dirichlet_shares(rest, labels, len(device_names), rng)
    return Digits(
        author=Share(images[author], labels[author]),
        devices={name: Share(images[own], labels[own]) for name, own in zip(device_names, shares, strict=True)},
        holdout=Share(images[holdout], labels[holdout]),
    )


def _dirichlet_shares(
    indices: NDArray[np.intp], labels: Labels, parts: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Split `indices` into `parts` by label; drawn again until nobody has fewer than SMALLEST_SHARE."""
    smallest = min(SMALLEST_SHARE, len(indices) // (2 * parts))
    for _ in range(MAX_DRAWS):
        owners: list[list[NDArray[np.intp]]] = [[] for _ in range(parts)]
        for label in range(len(LABELS)):
            own = indices[labels[indices] == label]
            cuts = np.cumsum(rng.dirichlet([ALPHA] * parts))[:-1] * len(own)
            for owner, piece in zip(owners, np.split(own, cuts.astype(int)), strict=True):
                owner.append(piece)
        shares = [rng.permutation(np.concatenate(owner)) for owner in owners]
        if min(len(share) for share in shares) >= smallest:
            return shares
    raise RuntimeError(f"no split gave each of {parts} devices {smallest} samples in {MAX_DRAWS} draws")
