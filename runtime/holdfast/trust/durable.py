"""Files that survive a power cut: after any crash a reader sees the old bytes or the new bytes, never a mixture.

Order: temporary file in the same folder, write, fsync, rename, fsync of the folder. Every file of a state folder that
is not a database is written through here. A crash may leave a temporary file behind; `remove_leftovers` is for the
one owner of a folder, at its start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from holdfast.errors import StateError

LEFTOVER_SUFFIX = ".unfinished"


def write_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by a file of `data`; when this returns, the bytes and the name are on the disk.

    Raises:
        StateError: the folder is missing, not writable, or full; `path` is as it was before.
    """
    _write(path, data, mode, os.replace)


def create_atomic(path: Path, data: bytes, mode: int = 0o600) -> None:
    """As `write_atomic`, but never replaces: of two that race for one name, exactly one wins.

    Needs a file system with hard links; one without them (FAT) has no file modes either, so it is no place for keys.

    Raises:
        StateError: `path` exists already, or cannot be written.
    """
    _write(path, data, mode, _link_new)


def make_folder(folder: Path, mode: int = 0o700) -> None:
    """Make `folder`, and its missing parents, durably and with `mode`. An existing folder is left as it is.

    Raises:
        StateError: it cannot be made, or something that is not a folder has its name.
    """
    if folder.is_dir():
        return
    try:
        if not folder.parent.is_dir():
            make_folder(folder.parent, mode)
        folder.mkdir(mode=mode, exist_ok=True)
        sync_folder(folder.parent)
    except OSError as error:
        raise StateError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` (files added, renamed, removed) to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> int:
    """Delete what interrupted writes left in `folder`; returns how many files.

    Only for the single owner of `folder`: it would also remove the temporary file of a write that is going on.
    """
    leftovers = [entry for entry in folder.iterdir() if entry.name.startswith(".") and entry.suffix == LEFTOVER_SUFFIX]
    for entry in leftovers:
        entry.unlink(missing_ok=True)
    return len(leftovers)


def _write(path: Path, data: bytes, mode: int, publish: Callable[[str, Path], None]) -> None:
    import tempfile  # a server that writes nothing does without

    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=LEFTOVER_SUFFIX, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            publish(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StateError(f"cannot write {path}: {error.strerror or error}") from error


def _link_new(temporary: str, path: Path) -> None:
    os.link(temporary, path)  # unlike rename, refuses a name that is taken
    os.unlink(temporary)
