"""What this device left out of its updates, kept until the next one (error feedback).

Known loss: an update that was signed but never reached the coordinator takes what it carried with it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from holdfast.learn.remembered import RememberedValues
from holdfast.update.layout import FlatLayout, Floats

KIND = "residual"


class ResidualStore:
    """The residuals of one device, one per model; zeros where there is none."""

    def __init__(self, folder: Path) -> None:
        self._values = RememberedValues(folder, KIND)

    def before(self, model: str, layout: FlatLayout, offer_sha256: str) -> Floats:
        """float32[layout.trainable_element_count]: what was left out before the answer to this offer."""
        zeros = np.zeros(layout.trainable_element_count, dtype=np.float32)
        return self._values.before(model, layout, offer_sha256, zeros)

    def keep(self, model: str, layout: FlatLayout, offer_sha256: str, *, before: Floats, after: Floats) -> None:
        """Write both residuals durably. Raises: StateError: the disk is full or not writable; call before replying."""
        self._values.keep(model, layout, offer_sha256, before=before, after=after)
