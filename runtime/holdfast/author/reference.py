"""What is measured of a model on its author's reference data: bins, scores, golden outputs, batch mixing.

Everything here runs the model as a device will: with the stock runtime, the weights beside the graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from holdfast.bundle.manifest import (
    BATCH_INDEPENDENT,
    BATCH_MIXES,
    BATCH_UNKNOWN,
    LOGITS,
    MAX_FEATURES,
    PROBABILITIES,
    FeatureEdges,
    ProfileEdges,
    Scores,
)
from holdfast.bundle.profile import Profile, feature_columns
from holdfast.errors import BundleError
from holdfast.inference.session import ModelSession
from holdfast.inference.tensors import Array
from holdfast.sketch.bins import BinCounts

GOLDEN_ROWS = 8  # enough to see a wrong weight, few enough to read
QUANTILES = tuple(tenth / 10 for tenth in range(1, 10))  # ten bins with as many rows each
CONFIDENCE_EDGES = QUANTILES  # of the highest probability of a row
MIXING_TOLERANCE = 1e-4  # relative and absolute: kernels for one row and for many may round differently

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Samples:
    """Reference data: one array[rows, ...] per model input, and perhaps the true label of every row, int64[rows]."""

    inputs: Mapping[str, Array]
    labels: npt.NDArray[np.int64] | None = None

    @property
    def rows(self) -> int:
        """How many rows there are.

        Raises:
            BundleError: no input, no row, or inputs of different length.
        """
        lengths = {array.shape[0] if array.ndim else 0 for array in self.inputs.values()}
        if self.labels is not None:
            lengths.add(len(self.labels))
        if len(lengths) != 1 or 0 in lengths:
            raise BundleError(f"samples need one or more rows, as many for every input; got {sorted(lengths)}")
        return lengths.pop()

    def part(self, start: int, stop: int) -> dict[str, Array]:
        """The inputs of some rows."""
        return {name: array[start:stop] for name, array in self.inputs.items()}


def run_rows(session: ModelSession, samples: Samples) -> dict[str, Array]:
    """The model's outputs for all rows, run in one batch, or row by row where its batch axis is fixed to 1."""
    rows = samples.rows
    if _batch_is_open(session):
        return session.run(dict(samples.inputs))
    answers = [session.run(samples.part(row, row + 1)) for row in range(rows)]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}


def golden_rows(session: ModelSession, samples: Samples) -> dict[str, Array]:
    """The first rows of the samples, as many as the model takes at once."""
    return samples.part(0, GOLDEN_ROWS if _batch_is_open(session) else 1)


def batch_mixing(session: ModelSession, samples: Samples) -> str:
    """Whether a row's answer depends on the other rows of its batch, as far as the samples show it."""
    if not _batch_is_open(session) or samples.rows < 2:
        return BATCH_UNKNOWN
    rows = min(samples.rows, GOLDEN_ROWS)
    together = session.run(samples.part(0, rows))
    for row in range(rows):
        alone = session.run(samples.part(row, row + 1))
        for name, array in alone.items():
            if array.dtype.kind == "f" and not np.allclose(
                array, together[name][row : row + 1], rtol=MIXING_TOLERANCE, atol=MIXING_TOLERANCE, equal_nan=True
            ):
                return BATCH_MIXES
    return BATCH_INDEPENDENT


def find_scores(outputs: Mapping[str, Array], labels: tuple[str, ...]) -> Scores | None:
    """The first output with one number per label, and whether its rows are probabilities. None without labels."""
    for name, array in outputs.items():
        if labels and array.dtype.kind == "f" and array.ndim == 2 and array.shape[1] == len(labels):
            wide = array.astype(np.float64)
            sums_to_one = bool(np.all(np.abs(wide.sum(axis=1) - 1) < 1e-3) and np.all(wide >= 0))
            return Scores(name, PROBABILITIES if sums_to_one else LOGITS)
    return None


def measure_profile(
    samples: Samples, outputs: Mapping[str, Array], scores: Scores | None, labels: tuple[str, ...]
) -> tuple[ProfileEdges, Profile]:
    """The bins that fit the reference data (deciles), and how it falls into them."""
    columns = dict(list(feature_columns(samples.inputs).items())[:MAX_FEATURES])
    edges = tuple(FeatureEdges(name, _deciles(values)) for name, values in columns.items())
    features = {each.name: _counts(columns[each.name], each.edges) for each in edges}
    if scores is None:
        return ProfileEdges(edges, ()), Profile(samples.rows, features)
    table = _probabilities(outputs[scores.output], scores.kind)
    predicted = table.argmax(axis=1)
    baseline = {} if samples.labels is None else {"accuracy": float(np.mean(predicted == samples.labels))}
    profile = Profile(
        rows=samples.rows,
        features=features,
        confidence=_counts(table.max(axis=1), CONFIDENCE_EDGES),
        predictions={label: int(np.sum(predicted == index)) for index, label in enumerate(labels)},
        baseline=baseline,
    )
    return ProfileEdges(edges, CONFIDENCE_EDGES), profile


def _batch_is_open(session: ModelSession) -> bool:
    return all(bool(spec.shape) and spec.shape[0] is None for spec in session.inputs)


def _deciles(values: Floats) -> tuple[float, ...]:
    """float64[rows] -> at most nine strictly rising edges; few different values give fewer."""
    numbers = values[np.isfinite(values)]
    return tuple(np.unique(np.quantile(numbers, QUANTILES)).tolist()) if numbers.size else ()


def _counts(values: Floats, edges: tuple[float, ...]) -> tuple[int, ...]:
    return BinCounts.empty(edges).add_many(values).counts


def _probabilities(scores: Array, kind: str) -> Floats:
    """float[rows, labels] -> float64[rows, labels], each row adding up to 1 (softmax of logits, shifted by its max)."""
    wide = scores.astype(np.float64)
    if kind == PROBABILITIES:
        return wide
    powers = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), dtype=np.float64)
