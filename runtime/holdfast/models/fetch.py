"""Fetching a bundle in pieces: goes on where it stopped, never takes more than announced, checks the hash at the end.

The part on disk is not trusted: after a power cut its end may be anything, so a part that turns out wrong as a whole is
thrown away and fetched once more from the start. Every wait and retry on the line is the caller's `fetch`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from holdfast.errors import LinkError, StateError, TrustError
from holdfast.wire.limits import MAX_PIECE_BYTES
from holdfast.wire.messages import FetchRequest, FetchResponse

Fetch = Callable[[FetchRequest], FetchResponse]

_READ_BYTES = 1_048_576


def fetch_blob(fetch: Fetch, blob_sha256: str, size_bytes: int, part: Path) -> None:
    """Bring the blob to `part`, whole, checked and synced. What `part` already holds is not fetched again.

    Raises:
        LinkError: the line failed or answered wrongly; what came so far stays in `part`.
        TrustError: the bytes are not those of `blob_sha256`, also not when fetched anew; or another number of them.
        StateError: the disk is full or not writable.
    """
    resumed = _size(part) > 0
    for _ in range(2 if resumed else 1):
        _fetch_rest(fetch, blob_sha256, size_bytes, part)
        if _hash(part) == blob_sha256:
            return
        part.unlink(missing_ok=True)
    raise TrustError(f"what came as bundle {blob_sha256[:16]} has another hash; the line or the coordinator changed it")


def _fetch_rest(fetch: Fetch, blob_sha256: str, size_bytes: int, part: Path) -> None:
    try:
        with part.open("ab") as file:
            if file.tell() > size_bytes:
                file.truncate(0)
                file.seek(0)
            while file.tell() < size_bytes:
                file.write(_piece(fetch, blob_sha256, file.tell(), size_bytes))
                file.flush()  # a killed process goes on from here; only a power cut asks for the fsync below
            os.fsync(file.fileno())
    except OSError as error:
        raise StateError(f"cannot write {part}: {error.strerror or error}") from error


def _piece(fetch: Fetch, blob_sha256: str, offset: int, size_bytes: int) -> bytes:
    wanted = min(MAX_PIECE_BYTES, size_bytes - offset)
    response = fetch(FetchRequest(blob_sha256, offset, wanted))
    if response.total_bytes != size_bytes:
        have = f"bundle {blob_sha256[:16]} has {response.total_bytes} bytes at the coordinator"
        raise TrustError(f"{have}, {size_bytes} were signed for")
    if not 0 < len(response.data) <= wanted:
        raise LinkError(f"a piece of bundle {blob_sha256[:16]} has {len(response.data)} bytes, asked for {wanted}")
    return response.data


def _size(part: Path) -> int:
    try:
        return part.stat().st_size
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise StateError(f"cannot read {part}: {error.strerror or error}") from error


def _hash(part: Path) -> str:
    digest = hashlib.sha256()
    try:
        with part.open("rb") as file:
            while block := file.read(_READ_BYTES):
                digest.update(block)
    except OSError as error:
        raise StateError(f"cannot read {part}: {error.strerror or error}") from error
    return digest.hexdigest()
