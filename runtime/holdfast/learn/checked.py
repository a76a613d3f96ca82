"""Which bundles passed the device's check on this machine, so that it is made once per bundle and not once per worker.

Rules: a pass counts for one digest, one version of the runtime and one kind of processor. A refusal is never kept: it
may have been the samples. The file is bounded, and one that cannot be read means that nothing was checked.
"""

from __future__ import annotations

import json
import logging
import platform
from pathlib import Path

import onnxruntime

from holdfast.errors import StateError
from holdfast.trust.durable import write_atomic

logger = logging.getLogger(__name__)

MAX_REMEMBERED = 64
MAX_FILE_BYTES = 65_536


class CheckedBundles:
    """The passes of one device, in one file. Not for several processes at once."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def has(self, digest: str) -> bool:
        """Whether this bundle passed here."""
        return self._key(digest) in self._load()

    def add(self, digest: str) -> None:
        """Remember a pass; a full disk means that it will be made again, and no more."""
        known = [each for each in self._load() if each != self._key(digest)]
        try:
            write_atomic(self._path, json.dumps([*known, self._key(digest)][-MAX_REMEMBERED:]).encode())
        except StateError as error:
            logger.warning("a passed check could not be written down: %s", type(error).__name__)

    def _load(self) -> list[str]:
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                return []
            known = json.loads(self._path.read_bytes())
        except (OSError, ValueError):
            return []
        return [each for each in known if isinstance(each, str)] if isinstance(known, list) else []

    def _key(self, digest: str) -> str:
        return f"{digest} {onnxruntime.__version__} {platform.machine()}"
