"""Running statistics that stay on this device: those of its normalisations, where they are local (FedBN).

A round's weights come with the author's statistics; a device that has learned before puts its own in their place, for
learning and for judging, and keeps what they became. They are no part of any update (Li et al. 2021, FedBN). The model
as it is served keeps those of its bundle: decisions/0012-local-statistics-learn-and-are-not-served.md says why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from holdfast.learn.remembered import RememberedValues
from holdfast.update.layout import FlatLayout, Floats

KIND = "statistics"


class LocalStatistics:
    """The statistics of one device, one set per model."""

    def __init__(self, folder: Path) -> None:
        self._values = RememberedValues(folder, KIND)

    def before(
        self, model: str, layout: FlatLayout, names: Sequence[str], offer_sha256: str, weights: Floats
    ) -> Floats:
        """`weights` with this device's own statistics in the place of `names`, as before the answer to this offer."""
        tensors = layout.unpack(weights)
        given = _joined(tensors, names)
        kept = self._values.before(model, layout, offer_sha256, given)
        own, start = dict(tensors), 0
        for name in names:
            shape, size = tensors[name].shape, tensors[name].size
            own[name] = kept[start : start + size].reshape(shape)
            start += size
        return layout.pack(own)

    def keep(
        self,
        model: str,
        layout: FlatLayout,
        names: Sequence[str],
        offer_sha256: str,
        *,
        before: Mapping[str, Floats],
        after: Mapping[str, Floats],
    ) -> None:
        """Write what they were and became, durably. Raises: StateError: the disk is full or not writable."""
        self._values.keep(model, layout, offer_sha256, before=_joined(before, names), after=_joined(after, names))


def _joined(tensors: Mapping[str, Floats], names: Sequence[str]) -> Floats:
    return np.concatenate([np.asarray(tensors[name], dtype="<f4").reshape(-1) for name in names])
