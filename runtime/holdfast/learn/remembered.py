"""What this device keeps of one round for the next: a flat array per model on disk, bounded, safe to be killed with.

Rules: a file remembers the values before and after the last update, and the offer that the update answered. When the
same offer is answered again (the worker was killed before its reply went out), the values from before are used, so
nothing counts twice. A file that is damaged, missing or of another layout gives the default: slower, never wrong.
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

MAX_FILES = 8  # models that learn on one device; of more, the ones unused longest start again from the default


class RememberedValues:
    """The values of one kind of a device. Not for several processes at once: a device has one worker.

    Args:
        kind: what they are; also the suffix of the files.
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self._folder = folder
        self._kind = kind

    def before(self, model: str, layout: FlatLayout, offer_sha256: str, default: Floats) -> Floats:
        """float32, as many as in `default`: what held before the answer to this offer."""
        try:
            files = read_container(self._path(model, layout).read_bytes(), self._kind)
            name = "before" if files["offer"] == offer_sha256.encode() else "after"
            values = np.frombuffer(files[name], dtype="<f4")
        except FileNotFoundError:
            return default
        except (OSError, FormatError, KeyError, ValueError) as error:
            logger.warning("a file of kind %s could not be read and is left out: %s", self._kind, type(error).__name__)
            return default
        if values.size != default.size or not np.all(np.isfinite(values)):
            return default
        return values

    def keep(self, model: str, layout: FlatLayout, offer_sha256: str, *, before: Floats, after: Floats) -> None:
        """Write both durably. Raises: StateError: the disk is full or not writable; call before replying."""
        make_folder(self._folder)
        path = self._path(model, layout)
        files = {"offer": offer_sha256.encode(), "before": before.tobytes(), "after": after.tobytes()}
        write_atomic(path, write_container(self._kind, files))
        others = sorted(self._folder.glob(f"*.{self._kind}"), key=lambda each: each.stat().st_mtime_ns)
        for surplus in [each for each in others if each != path][: max(0, len(others) - MAX_FILES)]:
            surplus.unlink(missing_ok=True)

    def _path(self, model: str, layout: FlatLayout) -> Path:
        table = json.dumps([model, layout.to_fields()], sort_keys=True)
        return self._folder / f"{hashlib.sha256(table.encode()).hexdigest()[:32]}.{self._kind}"
