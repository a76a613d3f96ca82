"""Local samples: held against a declared contract, counted by class, split into training and hold-out.

Rules: nothing is repaired or dropped. A dataset that does not keep its contract is refused, with what is wrong and in
which row, before any round starts. Messages carry positions and declared bounds, never a sample's values: they may end
in a report. (Where samples come from is in `data_source.py`; captured requests and encryption at rest will get modules
of their own beside it.)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from holdfast.errors import DatasetError

LABELS_NAME = "y"
SINGLE_INPUT_NAME = "x"
NOTHING_IGNORED = -1

Array = NDArray[np.generic]


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
    """What samples must be: the inputs, and their labels.

    Labels are integers from 0 to class_count - 1 (and `ignored_label`, whose samples count for nothing; -1: none), or,
    with `target_shape`, float32 of that shape for each sample; `is_yes_no`: each of these is a probability, 0 to 1.
    """

    inputs: tuple[InputContract, ...]
    class_count: int
    target_shape: tuple[int, ...] | None = None
    is_yes_no: bool = False
    ignored_label: int = NOTHING_IGNORED

    @property
    def knows_right(self) -> bool:
        """Whether a prediction can be right or wrong; a number never is."""
        return self.target_shape is None or self.is_yes_no

    @property
    def expected_names(self) -> str:
        """The arrays that a file should have, for messages."""
        names = [SINGLE_INPUT_NAME] if len(self.inputs) == 1 else [spec.name for spec in self.inputs]
        return ", ".join((*names, LABELS_NAME))


@dataclass(frozen=True, slots=True)
class LocalDataset:
    """Samples that keep their contract. Not to be modified.

    inputs[name]: [count, *shape]. labels: int64[count], or float32[count, *target_shape].
    """

    contract: DataContract
    inputs: Mapping[str, Array]
    labels: Array

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Array], contract: DataContract) -> LocalDataset:
        """Check arrays (inputs by name, and `y`) without copying them.

        Raises: DatasetError: naming the array and the first row that breaks the contract.
        """
        missing = [name for name in (*(spec.name for spec in contract.inputs), LABELS_NAME) if name not in arrays]
        if missing:
            raise DatasetError(f"array {missing[0]!r} is missing; expected {contract.expected_names}")
        labels = _checked_labels(arrays[LABELS_NAME], contract)
        for spec in contract.inputs:
            _check_values(arrays[spec.name], spec, len(labels), f"input {spec.name!r}")
        return cls(contract, {spec.name: arrays[spec.name] for spec in contract.inputs}, labels)

    @property
    def count(self) -> int:
        return len(self.labels)

    @property
    def class_counts(self) -> tuple[int, ...]:
        """How many samples each class has, without ignored ones; empty where labels are numbers."""
        if self.contract.target_shape is not None:
            return ()
        classes = self.contract.class_count
        inside = self.labels[np.greater_equal(self.labels, 0) & np.less(self.labels, classes)]
        return tuple(int(n) for n in np.bincount(inside, minlength=classes))

    @classmethod
    def joined(cls, parts: Sequence[LocalDataset]) -> LocalDataset:
        """The samples of several datasets of one contract, in order; copied if there is more than one."""
        first = parts[0]
        if len(parts) == 1:
            return first
        inputs = {name: np.concatenate([part.inputs[name] for part in parts]) for name in first.inputs}
        return cls(first.contract, inputs, np.concatenate([part.labels for part in parts]))

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


def _checked_labels(labels: Array, contract: DataContract) -> Array:
    if contract.target_shape is not None:
        low, high = (0.0, 1.0) if contract.is_yes_no else (-math.inf, math.inf)
        wanted = InputContract(LABELS_NAME, "float32", contract.target_shape, low, high)
        _check_values(labels, wanted, len(labels) if labels.ndim else 0, f"labels {LABELS_NAME!r}")
    elif labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DatasetError(f"labels must be integers of shape [samples], got {labels.dtype}{list(labels.shape)}")
    if labels.size == 0:
        raise DatasetError("there are no samples; at least one is needed")
    if contract.target_shape is not None:
        return labels
    is_outside = np.less(labels, 0) | np.greater_equal(labels, contract.class_count)
    if contract.ignored_label != NOTHING_IGNORED:
        is_outside &= np.not_equal(labels, contract.ignored_label)
    outside = np.flatnonzero(is_outside)
    if outside.size:
        raise DatasetError(
            f"label of row {outside[0]} is out of range ({outside.size} such rows); "
            f"expected 0 to {contract.class_count - 1}"
        )
    return labels.astype(np.int64, copy=False)


def _check_values(values: Array, spec: InputContract, count: int, what: str) -> None:
    if values.dtype != np.dtype(spec.dtype):
        raise DatasetError(f"{what} is {values.dtype}, expected {spec.dtype}")
    if values.shape != (count, *spec.shape):
        raise DatasetError(f"{what} has shape {list(values.shape)}, expected {[count, *spec.shape]} for {count} labels")
    rows = values.reshape(count, math.prod(spec.shape))
    if values.dtype.kind == "f":
        _refuse_rows(~np.isfinite(rows), f"{what} holds NaN or infinity")
    outside = np.less(rows, spec.minimum) | np.greater(rows, spec.maximum)
    _refuse_rows(outside, f"{what} is outside [{spec.minimum}, {spec.maximum}]")


def _refuse_rows(bad: NDArray[np.bool_], what: str) -> None:
    rows = np.flatnonzero(bad.any(axis=1))
    if rows.size:
        raise DatasetError(f"{what} in row {rows[0]} ({rows.size} such rows)")
