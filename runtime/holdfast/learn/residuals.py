"""What this device left out of its updates, kept on disk until the next one: one file per model.

Rules: a file remembers the residual before and after the last update, and the offer that the update answered. When the
same offer is answered again (the worker was killed before its reply went out), the residual from before is used, so
nothing counts twice. A file that is damaged, missing or of another layout is a residual of zeros: slower, never wrong.
Known loss: an update that was signed but never reached the coordinator takes what it carried with it.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from holdfast.errors import FormatError
from holdfast.trust.durable import make_folder, write_atomic
from holdfast.update.layout import FlatLayout, Floats
from holdfast.wire.container import read_container, write_container

logger = logging.getLogger(__name__)

KIND = "residual"
MAX_FILES = 8  # models that learn on one device; of more, the ones unused longest start again from zero


class ResidualStore:
    """The residuals of one device. Not for several processes at once: a device has one worker."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, model: str, layout: FlatLayout, offer_sha256: str) -> Floats:
        """float32[layout.trainable_element_count]: what was left out before the answer to this offer."""
        count = layout.trainable_element_count
        try:
            files = read_container(self._path(model, layout).read_bytes(), KIND)
            name = "before" if files["offer"] == offer_sha256.encode() else "after"
            values = np.frombuffer(files[name], dtype="<f4")
        except FileNotFoundError:
            return np.zeros(count, dtype=np.float32)
        except (OSError, FormatError, KeyError, ValueError) as error:
            logger.warning("a residual could not be read and starts at zero: %s", type(error).__name__)
            return np.zeros(count, dtype=np.float32)
        if values.size != count or not np.all(np.isfinite(values)):
            return np.zeros(count, dtype=np.float32)
        return values

    def keep(self, model: str, layout: FlatLayout, offer_sha256: str, *, before: Floats, after: Floats) -> None:
        """Write both residuals durably. Raises: StateError: the disk is full or not writable; call before replying."""
        make_folder(self._folder)
        path = self._path(model, layout)
        files = {"offer": offer_sha256.encode(), "before": before.tobytes(), "after": after.tobytes()}
        write_atomic(path, write_container(KIND, files))
        others = sorted(self._folder.glob("*.residual"), key=lambda each: each.stat().st_mtime_ns)
        for surplus in [each for each in others if each != path][: max(0, len(others) - MAX_FILES)]:
            surplus.unlink(missing_ok=True)

    def _path(self, model: str, layout: FlatLayout) -> Path:
        table = json.dumps([model, layout.to_fields()], sort_keys=True)
        return self._folder / f"{hashlib.sha256(table.encode()).hexdigest()[:32]}.residual"
