"""Bundles in a folder, where the registry is not the subject."""

from __future__ import annotations

from pathlib import Path

from holdfast.bundle.verify import read_bundle


class FolderShelf:
    """Bundles as files, named by their digest."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def container(self, digest: str) -> bytes:
        return (self._folder / digest).read_bytes()

    def add(self, container: bytes) -> str:
        digest = read_bundle(container).digest
        (self._folder / digest).write_bytes(container)
        return digest
