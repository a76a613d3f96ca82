"""System shared memory regions that a client on this machine registered, to send and to get tensors without a socket.

Rules: a key is one plain name in the folder of shm_open(3), never a path, never a link; offset and size are checked
against the file when it is registered and again at every use; regions are few, and one tensor is bounded. Bytes are
copied by preadv, into memory that is used again, and by pwrite.
Why not mmap (decisions/0009): a client that truncates its file would end this process with SIGBUS, and one that
changes it during a run would change a tensor after it was checked.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import ConflictError, RequestError, UnknownRegionError
from holdfast.serving.buffers import Buffers
from holdfast.serving.parameters import RegionSlice

SHM_FOLDER = Path("/dev/shm")  # where shm_open(3) of glibc and musl keeps its files
MAX_REGIONS = 64  # file descriptors that clients can make us hold
MAX_TENSOR_BYTES = 1024**3  # 1 GiB of one tensor: an object may be sparse, so its size says nothing about memory
MAX_NAME_CHARS = 255

_KEY = re.compile(r"/?[A-Za-z0-9._-]{1,254}\Z")


@dataclass(frozen=True, slots=True)
class Region:
    """What was registered, as the status call tells it."""

    name: str
    key: str
    offset: int
    size_bytes: int


class SharedMemory:
    """The registered regions. Thread-safe."""

    def __init__(self, folder: Path = SHM_FOLDER, *, max_tensor_bytes: int = MAX_TENSOR_BYTES) -> None:
        self._max_tensor_bytes = max_tensor_bytes
        self._buffers = Buffers()
        self._folder = folder
        self._regions: dict[str, tuple[Region, int]] = {}  # with its open file
        self._lock = threading.Lock()

    def register(self, name: str, key: str, offset: int, size_bytes: int) -> None:
        """Make a part of a shared memory object known under `name`.

        Raises:
            RequestError: the key is not a plain name, there is no such object, or it is smaller than said.
            ConflictError: the name is taken by another region.
        """
        if not 0 < len(name) <= MAX_NAME_CHARS:
            raise RequestError(f"expected a region's name of 1 to {MAX_NAME_CHARS} characters")
        if not _KEY.match(key) or key.removeprefix("/") in (".", ".."):
            raise RequestError("expected a shared memory key of letters, digits, '.', '_' and '-', without folders")
        region = Region(name, key, offset, size_bytes)
        with self._lock:
            if name in self._regions:
                if self._regions[name][0] == region:
                    return
                raise ConflictError(f"shared memory region '{name}' is registered already; unregister it first")
            if len(self._regions) >= MAX_REGIONS:
                raise RequestError(f"more than {MAX_REGIONS} shared memory regions; unregister some")
            self._regions[name] = (region, self._open(region))

    def unregister(self, name: str) -> None:
        """Forget the region `name`; with an empty name, all of them. An unknown name is no error, as in Triton."""
        with self._lock:
            for gone in [name] if name else list(self._regions):
                if gone in self._regions:
                    os.close(self._regions.pop(gone)[1])
            if not self._regions:
                self._buffers.forget()

    def status(self, name: str = "") -> Mapping[str, Region]:
        """The region `name`; with an empty name, all of them.

        Raises:
            UnknownRegionError: it is not registered.
        """
        with self._lock:
            if name:
                return {name: self._find(name)[0]}
            return {known: region for known, (region, _) in self._regions.items()}

    def read(self, place: RegionSlice) -> memoryview:
        """A copy of a slice, aligned; its memory is used again when nothing refers to it any more.

        Raises:
            UnknownRegionError: the region is not registered.
            RequestError: the slice is not inside it, or its file has shrunk.
        """
        if place.size_bytes > self._max_tensor_bytes:
            raise RequestError(f"a tensor of {place.size_bytes} bytes; at most {self._max_tensor_bytes} are taken")
        with self._lock:  # unregister must not close the file under us
            region, file = self._find(place.region)
            start = _start(region, place)
            copy = self._buffers.take(place.size_bytes)
            count = os.preadv(file, [copy], start)
        if count != place.size_bytes:
            raise RequestError(f"shared memory region '{place.region}' is shorter than when it was registered")
        return copy

    def write(self, place: RegionSlice, data: bytes) -> None:
        """Put `data` at the beginning of a slice.

        Raises:
            UnknownRegionError: the region is not registered.
            RequestError: the slice is not inside it, too small for `data`, or its file has shrunk.
        """
        if len(data) > place.size_bytes:
            raise RequestError(
                f"shared memory region '{place.region}': expected an output of at most {place.size_bytes} bytes, "
                f"got {len(data)}"
            )
        with self._lock:
            region, file = self._find(place.region)
            start = _start(region, place)
            if os.fstat(file).st_size < start + len(data):
                raise RequestError(f"shared memory region '{place.region}' is shorter than when it was registered")
            os.pwrite(file, data, start)

    def _find(self, name: str) -> tuple[Region, int]:
        if name not in self._regions:
            raise UnknownRegionError(f"Unable to find system shared memory region: '{name[:MAX_NAME_CHARS]}'")
        return self._regions[name]

    def _open(self, region: Region) -> int:
        path = self._folder / region.key.removeprefix("/")
        try:
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise RequestError(f"Unable to open shared memory region: '{region.name}' ({error.strerror})") from error
        status = os.fstat(file)
        if not stat.S_ISREG(status.st_mode) or region.offset + region.size_bytes > status.st_size:
            os.close(file)
            raise RequestError(
                f"shared memory region '{region.name}': expected {region.size_bytes} bytes from {region.offset} on, "
                f"its object has {status.st_size}"
            )
        return file


def _start(region: Region, place: RegionSlice) -> int:
    if place.offset + place.size_bytes > region.size_bytes:
        raise RequestError(
            f"shared memory region '{region.name}': {place.size_bytes} bytes from {place.offset} on do not lie in its "
            f"{region.size_bytes} bytes"
        )
    return region.offset + place.offset
