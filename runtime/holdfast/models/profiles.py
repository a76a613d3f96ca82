"""Which bundle's profile belongs to a served model: looked up on the serving thread, loaded on another.

A profile is read from a blob that was verified when it was installed; it only says how to count.
"""

from __future__ import annotations

import logging

from holdfast.bundle.manifest import Manifest
from holdfast.bundle.verify import read_bundle
from holdfast.errors import HoldfastError
from holdfast.models.store import ModelStore

logger = logging.getLogger(__name__)


class CurrentManifests:
    """The manifests of the models in service, by name. `find` may be called from any thread and never waits."""

    def __init__(self, store: ModelStore) -> None:
        self._store = store
        self._known: dict[str, tuple[str, Manifest]] = {}

    def find(self, model: str, version: str) -> tuple[str, Manifest] | None:
        """(bundle digest, manifest) of the model in service under that name and version; None if it is not known."""
        found = self._known.get(model)
        return found if found is not None and found[1].version == version else None

    def refresh(self) -> None:
        """Read the manifests of models that came into service since."""
        known: dict[str, tuple[str, Manifest]] = {}
        for name in self._store.names():
            slot = self._store.slots(name).current
            if slot is None:
                continue
            before = self._known.get(name)
            if before is not None and before[0] == slot.digest:
                known[name] = before
                continue
            try:
                known[name] = (slot.digest, read_bundle(self._store.read(slot.blob_sha256)).manifest)
            except HoldfastError as error:
                logger.warning("no profile for a model", extra={"model": name, "error": str(error)})
        self._known = known
