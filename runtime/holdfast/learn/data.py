"""Local samples: read from a file, held against a declared contract, split into training and hold-out.

Rules: nothing is repaired or dropped. A dataset that does not keep its contract is refused, with what is wrong and in
which row, before any round starts. Messages carry positions and declared bounds, never a sample's values: they may end
in a report. (Folders, CSV, captured requests and encryption at rest get their own modules beside this one.)

File format: one npz with an array per input of the model and the labels `y`. A model with a single input may call its
array `x`. The first axis of every array is the sample.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import DatasetError

LABELS_NAME = "y"
SINGLE_INPUT_NAME = "x"
MAX_DATASET_BYTES = 8 * 2**30  # unpacked; a device with more than 8 GiB of samples needs another source than one file
MAX_ARRAYS = 64

Array = NDArray[np.generic]
Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class InputContract:
    """One input of the model: dtype as numpy names it, shape of one sample, and the closed range values must lie in."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float = -math.inf
    maximum: float = math.inf


@dataclass(frozen=True, slots=True)
class DataContract:
    """What samples must be: the inputs, and integer labels from 0 to class_count - 1."""

    inputs: tuple[InputContract, ...]
    class_count: int


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """Samples that keep their contract. `inputs[name]`: [count, *shape]; `labels`: int64[count]. Not to be modified."""

    contract: DataContract
    inputs: Mapping[str, Array]
    labels: Labels

    @classmethod
    def from_npz(cls, path: Path, contract: DataContract) -> LocalDataset:
        """Read and check a file.

        Raises: DatasetError: naming the file, the array and the first row that breaks the contract.
        """
        arrays = _read_npz(path)
        names = {spec.name for spec in contract.inputs}
        if len(names) == 1 and SINGLE_INPUT_NAME in arrays and not names & set(arrays):
            arrays[next(iter(names))] = arrays.pop(SINGLE_INPUT_NAME)
        unknown = sorted(set(arrays) - names - {LABELS_NAME})
        if unknown:
            raise DatasetError(f"{path}: array {unknown[0]!r} is not declared; expected {_expected_names(contract)}")
        try:
            return cls.from_arrays(arrays, contract)
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], contract: DataContract) -> LocalDataset:
        """Check arrays (inputs by name, and `y`) without copying them.

        Raises: DatasetError: naming the array and the first row that breaks the contract.
        """
        missing = [name for name in (*(spec.name for spec in contract.inputs), LABELS_NAME) if name not in arrays]
        if missing:
            raise DatasetError(f"array {missing[0]!r} is missing; expected {_expected_names(contract)}")
        labels = _checked_labels(arrays[LABELS_NAME], contract.class_count)
        for spec in contract.inputs:
            _check_input(arrays[spec.name], spec, labels.size)
        return cls(contract, {spec.name: arrays[spec.name] for spec in contract.inputs}, labels)

    @property
    def count(self) -> int:
        return self.labels.size

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many samples each class has."""
        return tuple(int(n) for n in np.bincount(self.labels, minlength=self.contract.class_count))

    def take(self, rows: NDArray[np.int64]) -> LocalDataset:
        """The samples at `rows`, in that order; copied."""
        inputs = {name: array[rows] for name, array in self.inputs.items()}
        return LocalDataset(self.contract, inputs, self.labels[rows])

    def split(self, hold_out: float, seed: int) -> tuple[LocalDataset, LocalDataset]:
        """Training part and hold-out part; the same seed and count always give the same split.

        The hold-out has floor(count * hold_out) samples, so a single sample always trains.

        Args:
            hold_out: share of the samples, 0 <= hold_out < 1.
        """
        if not 0 <= hold_out < 1:
            raise DatasetError(f"the hold-out share must be at least 0 and below 1, got {hold_out}")
        order = np.random.Generator(np.random.PCG64(seed)).permutation(self.count)
        held = math.floor(self.count * hold_out)
        return self.take(np.sort(order[held:])), self.take(np.sort(order[:held]))


def count_rows(path: Path) -> int:
    """How many samples a file holds, from the header of its labels alone: no sample is read.

    Raises: DatasetError: no such file, or no npz with one-dimensional labels.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{LABELS_NAME}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, _ = read(member)
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise DatasetError(f"{path}: not an npz file with labels '{LABELS_NAME}' ({type(error).__name__})") from error
    if len(shape) != 1:
        raise DatasetError(f"{path}: labels '{LABELS_NAME}' have shape {list(shape)}, expected one dimension")
    return int(shape[0])


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
        unpacked = sum(member.file_size for member in members)
        if len(members) > MAX_ARRAYS or unpacked > MAX_DATASET_BYTES:
            raise DatasetError(
                f"{path}: {len(members)} arrays of {unpacked} bytes in total; "
                f"at most {MAX_ARRAYS} arrays and {MAX_DATASET_BYTES} bytes are read"
            )
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError as error:
        raise DatasetError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        raise DatasetError(f"{path}: not a readable npz file of plain arrays ({type(error).__name__})") from error


def _expected_names(contract: DataContract) -> str:
    names = [SINGLE_INPUT_NAME] if len(contract.inputs) == 1 else [spec.name for spec in contract.inputs]
    return ", ".join((*names, LABELS_NAME))


def _checked_labels(labels: Array, class_count: int) -> Labels:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DatasetError(f"labels must be integers of shape [samples], got {labels.dtype}{list(labels.shape)}")
    if labels.size == 0:
        raise DatasetError("there are no samples; at least one is needed")
    outside = np.flatnonzero(np.less(labels, 0) | np.greater_equal(labels, class_count))
    if outside.size:
        raise DatasetError(
            f"label of row {outside[0]} is out of range ({outside.size} such rows); expected 0 to {class_count - 1}"
        )
    return labels.astype(np.int64, copy=False)


def _check_input(values: Array, spec: InputContract, count: int) -> None:
    if values.dtype != np.dtype(spec.dtype):
        raise DatasetError(f"input {spec.name!r} is {values.dtype}, expected {spec.dtype}")
    if values.shape != (count, *spec.shape):
        raise DatasetError(
            f"input {spec.name!r} has shape {list(values.shape)}, expected {[count, *spec.shape]} for {count} labels"
        )
    rows = values.reshape(count, -1)
    if values.dtype.kind == "f":
        _refuse_rows(~np.isfinite(rows), f"input {spec.name!r} holds NaN or infinity")
    outside = np.less(rows, spec.minimum) | np.greater(rows, spec.maximum)
    _refuse_rows(outside, f"input {spec.name!r} is outside [{spec.minimum}, {spec.maximum}]")


def _refuse_rows(bad: NDArray[np.bool_], what: str) -> None:
    rows = np.flatnonzero(bad.any(axis=1))
    if rows.size:
        raise DatasetError(f"{what} in row {rows[0]} ({rows.size} such rows)")
