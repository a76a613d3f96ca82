"""The flat layout: where each named parameter lies inside one contiguous little-endian float32 array.

`weights.bin` of a bundle is exactly this array, and the served model refers to it as external data with the offsets
written here, so weights move between device, round and runtime without touching a protobuf. Rules:

- entries are contiguous, in file order, without padding: the size of the array is the sum of the entries;
- names are unique; only float32 exists; shapes are static;
- a change of the weights ("delta") covers the *trainable* entries only, in layout order. With every entry trainable
  (the usual case) the two arrays have the same length.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import FormatError

FLOAT32_BYTES = 4
MAX_ENTRIES = 65_536  # the largest public models have about 2,000 parameters
MAX_NAME_LENGTH = 1_024
MAX_RANK = 16
MAX_WEIGHTS_BYTES = 2**33  # 8 GiB: beyond what one flat array on the wire is meant for

Floats = NDArray[np.float32]
_ENTRY_FIELDS = ("name", "shape", "dtype", "offset_bytes", "trainable")


@dataclass(frozen=True, slots=True)
class LayoutEntry:
    """One parameter: float32 of `shape`, starting `offset_bytes` into the flat array."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset_bytes: int
    trainable: bool

    @property
    def element_count(self) -> int:
        return math.prod(self.shape)

    @property
    def size_bytes(self) -> int:
        return self.element_count * FLOAT32_BYTES


@dataclass(frozen=True, slots=True)
class FlatLayout:
    """The table of all parameters of a model, in file order.

    Raises:
        FormatError: entries overlap, leave a gap, repeat a name, or are not float32.
    """

    entries: tuple[LayoutEntry, ...]

    def __post_init__(self) -> None:
        _check_entries(self.entries)

    @classmethod
    def from_shapes(
        cls, shapes: Iterable[tuple[str, tuple[int, ...]]], *, trainable: Iterable[str] | None = None
    ) -> FlatLayout:
        """Lay parameters out one behind the other. `trainable` names the ones that may learn; None means all."""
        chosen = None if trainable is None else set(trainable)
        entries = []
        offset = 0
        for name, shape in shapes:
            learns = chosen is None or name in chosen
            entry = LayoutEntry(name=name, shape=tuple(shape), dtype="float32", offset_bytes=offset, trainable=learns)
            entries.append(entry)
            offset += entry.size_bytes
        return cls(tuple(entries))

    @property
    def element_count(self) -> int:
        """Length of the flat array of all weights, in float32 elements."""
        return sum(entry.element_count for entry in self.entries)

    @property
    def size_bytes(self) -> int:
        """Length of `weights.bin`."""
        return self.element_count * FLOAT32_BYTES

    @property
    def trainable(self) -> tuple[LayoutEntry, ...]:
        """The entries that may learn, in layout order."""
        return tuple(entry for entry in self.entries if entry.trainable)

    @property
    def trainable_element_count(self) -> int:
        """Length of a delta, in float32 elements."""
        return sum(entry.element_count for entry in self.trainable)

    def pack(self, tensors: Mapping[str, NDArray[np.generic]]) -> Floats:
        """Copy named float32 tensors into one flat array.

        Returns: float32[element_count], a new array.
        Raises: FormatError: a tensor is missing, unknown, or of another dtype or shape.
        """
        unknown = sorted(set(tensors) - {entry.name for entry in self.entries})
        if unknown:
            raise FormatError(f"parameter {unknown[0]!r} is not in the layout; expected only the names of the layout")
        flat = np.empty(self.element_count, dtype="<f4")
        for entry in self.entries:
            flat[_span(entry)] = _checked_tensor(entry, tensors).reshape(-1)
        return flat

    def unpack(self, flat: Floats) -> dict[str, Floats]:
        """Named views into `flat` (float32[element_count]); nothing is copied, so they change with it."""
        self.check_weights(flat)
        return {entry.name: flat[_span(entry)].reshape(entry.shape) for entry in self.entries}

    def check_weights(self, flat: Floats) -> None:
        """Raise FormatError unless `flat` is float32[element_count], C-contiguous."""
        _check_flat(flat, self.element_count, "weights")

    def trainable_part(self, flat: Floats) -> Floats:
        """The trainable entries of `flat` behind each other: float32[trainable_element_count], a copy."""
        self.check_weights(flat)
        if not self.trainable:
            return np.empty(0, dtype="<f4")
        return np.concatenate([flat[_span(entry)] for entry in self.trainable])

    def add_delta(self, flat: Floats, delta: Floats) -> Floats:
        """`flat` with `delta` (float32[trainable_element_count]) added to its trainable entries; a new array.

        The sum is taken in float32, element by element, so every machine with IEEE 754 gets the same bits.
        """
        self.check_weights(flat)
        _check_flat(delta, self.trainable_element_count, "delta")
        changed = flat.copy()
        start = 0
        for entry in self.trainable:
            changed[_span(entry)] += delta[start : start + entry.element_count]
            start += entry.element_count
        return changed

    def weights_from_bytes(self, data: bytes) -> Floats:
        """Read `weights.bin`: float32[element_count], read-only, not copied.

        Raises: FormatError: another size than the layout's, or a value that is NaN or infinite.
        """
        if len(data) != self.size_bytes:
            raise FormatError(f"weights are {len(data)} bytes, expected {self.size_bytes} by the layout")
        flat = np.frombuffer(data, dtype="<f4")
        bad = np.flatnonzero(~np.isfinite(flat))
        if bad.size:
            raise FormatError(f"weight {int(bad[0])} is {flat[bad[0]]}; weights must be finite")
        return flat

    def to_fields(self) -> dict[str, object]:
        """The table as plain JSON values, for a manifest."""
        return {
            "entries": [
                {
                    "name": entry.name,
                    "shape": list(entry.shape),
                    "dtype": entry.dtype,
                    "offset_bytes": entry.offset_bytes,
                    "trainable": entry.trainable,
                }
                for entry in self.entries
            ]
        }

    @classmethod
    def from_fields(cls, fields: object) -> FlatLayout:
        """Read what `to_fields` wrote; unknown or missing keys are refused.

        Raises: FormatError: naming the entry and what is wrong with it.
        """
        if not isinstance(fields, dict) or set(fields) != {"entries"} or not isinstance(fields["entries"], list):
            raise FormatError('layout must be {"entries": [...]}')
        if len(fields["entries"]) > MAX_ENTRIES:
            raise FormatError(f"layout has {len(fields['entries'])} entries, at most {MAX_ENTRIES} are allowed")
        return cls(tuple(_entry_from_fields(index, value) for index, value in enumerate(fields["entries"])))


def _span(entry: LayoutEntry) -> slice:
    start = entry.offset_bytes // FLOAT32_BYTES
    return slice(start, start + entry.element_count)


def _check_flat(flat: Floats, expected: int, what: str) -> None:
    if flat.dtype != np.dtype("<f4") or flat.ndim != 1 or flat.size != expected or not flat.flags.c_contiguous:
        raise FormatError(f"{what} must be contiguous float32[{expected}], got {flat.dtype}{list(flat.shape)}")


def _checked_tensor(entry: LayoutEntry, tensors: Mapping[str, NDArray[np.generic]]) -> NDArray[np.generic]:
    tensor = tensors.get(entry.name)
    if tensor is None:
        raise FormatError(f"parameter {entry.name!r} is missing; the layout needs it")
    if tensor.dtype != np.float32 or tensor.shape != entry.shape:
        raise FormatError(
            f"parameter {entry.name!r} must be float32{list(entry.shape)}, got {tensor.dtype}{list(tensor.shape)}"
        )
    return tensor


def _check_entries(entries: tuple[LayoutEntry, ...]) -> None:
    if len(entries) > MAX_ENTRIES:
        raise FormatError(f"layout has {len(entries)} entries, at most {MAX_ENTRIES} are allowed")
    names: set[str] = set()
    offset = 0
    for entry in entries:
        if not entry.name or len(entry.name) > MAX_NAME_LENGTH:
            raise FormatError(
                f"layout entry at byte {entry.offset_bytes} needs a name of 1 to {MAX_NAME_LENGTH} letters"
            )
        if entry.name in names:
            raise FormatError(f"layout entry {entry.name!r} appears twice")
        if entry.dtype != "float32":
            raise FormatError(f"layout entry {entry.name!r} is {entry.dtype}, only float32 can be laid out")
        if len(entry.shape) > MAX_RANK or any(not 0 < size < MAX_WEIGHTS_BYTES for size in entry.shape):
            raise FormatError(f"layout entry {entry.name!r} has shape {list(entry.shape)}, expected positive sizes")
        if entry.offset_bytes != offset:
            raise FormatError(f"layout entry {entry.name!r} starts at byte {entry.offset_bytes}, expected {offset}")
        names.add(entry.name)
        offset += entry.size_bytes
        if offset > MAX_WEIGHTS_BYTES:
            raise FormatError(f"layout is larger than {MAX_WEIGHTS_BYTES} bytes at entry {entry.name!r}")


def _entry_from_fields(index: int, value: object) -> LayoutEntry:
    if not isinstance(value, dict) or set(value) != set(_ENTRY_FIELDS):
        raise FormatError(f"layout entry {index} must have exactly the fields {', '.join(_ENTRY_FIELDS)}")
    fields = cast("dict[str, object]", value)
    name, shape, dtype, offset, trainable = (fields[field] for field in _ENTRY_FIELDS)
    if not isinstance(name, str) or not isinstance(dtype, str) or not isinstance(trainable, bool):
        raise FormatError(f"layout entry {index}: name and dtype must be text, trainable true or false")
    if not _is_integer(offset) or not isinstance(shape, list) or not all(_is_integer(size) for size in shape):
        raise FormatError(f"layout entry {index} ({name!r}): shape must be a list of integers, offset_bytes an integer")
    return LayoutEntry(name, tuple(shape), dtype, cast("int", offset), trainable)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
