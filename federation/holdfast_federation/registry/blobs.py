"""Blobs by the hash of their bytes, on disk before anything names them, handed out in pieces."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from holdfast.errors import FormatError, StateError
from holdfast.trust.durable import make_folder, write_atomic
from holdfast.wire.limits import MAX_BLOB_BYTES, MAX_PIECE_BYTES
from holdfast.wire.messages import FetchResponse

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Blobs:
    """The folder `blobs/sha256`. Writing the same bytes again changes nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sha256"
        make_folder(self._folder)

    def put(self, data: bytes) -> str:
        """Store durably; returns the hash.

        Raises:
            StateError: the disk is full or not writable.
        """
        sha256 = hashlib.sha256(data).hexdigest()
        path = self._path(sha256)
        if not path.exists():
            write_atomic(path, data)
        return sha256

    def get(self, blob_sha256: str) -> bytes:
        """A whole blob, its hash checked again.

        Raises:
            StateError: it is not there, or was changed on disk.
        """
        path = self._path(blob_sha256)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BLOB_BYTES + 1)
        except OSError as error:
            raise StateError(f"cannot read the blob {path}: {error.strerror or error}") from error
        if hashlib.sha256(data).hexdigest() != blob_sha256:
            raise StateError(f"blob {path} was changed on disk: its hash differs; restore it from a backup")
        return data

    def piece(self, blob_sha256: str, offset: int, max_bytes: int) -> FetchResponse:
        """Up to `max_bytes` (1 MiB at most) from `offset`. The receiver checks the hash of the whole.

        Raises:
            FormatError: no hash, or an offset outside the blob. StateError: there is no such blob.
        """
        path = self._path(blob_sha256)
        try:
            with path.open("rb") as file:
                total = file.seek(0, 2)
                if not 0 <= offset < total or max_bytes < 1:
                    raise FormatError(f"{max_bytes} bytes from {offset} were asked for; the blob has {total}")
                file.seek(offset)
                return FetchResponse(total, file.read(min(max_bytes, MAX_PIECE_BYTES)))
        except OSError as error:
            raise StateError(f"cannot read the blob {path}: {error.strerror or error}") from error

    def _path(self, blob_sha256: str) -> Path:
        if _SHA256.fullmatch(blob_sha256) is None:
            raise FormatError(f"{blob_sha256[:80]!r} is not a SHA-256 in hexadecimal digits")
        return self._folder / blob_sha256
