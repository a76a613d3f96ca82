"""`profile.json`: how the author's reference data fell into the bins of the manifest, and the baseline figures.

Rules: counts go with the edges in the manifest, as `holdfast.sketch.bins.BinCounts` counts; no row, minimum or maximum
of the data is in it. `feature_columns` says what a feature is, for the author and for every device alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from holdfast.bundle.documents import Fields, canonical_json, check_canonical, count, finite_number, parse_json
from holdfast.bundle.manifest import MAX_EDGES, MAX_FEATURES, MAX_LABELS, ProfileEdges
from holdfast.errors import BundleError

SCHEMA = "holdfast/profile/v1"
MAX_PROFILE_BYTES = 4_194_304  # 4 MiB: 1,024 features of 65 bins with 12 digits each are 1 MiB
MAX_COLUMNS = 256  # per input; a wider one (an image) is watched by the mean and spread of its rows

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Profile:
    """Reference counts over the manifest's edges, predictions by label, and baseline figures such as accuracy."""

    rows: int
    features: Mapping[str, tuple[int, ...]]
    confidence: tuple[int, ...] = ()
    predictions: Mapping[str, int] = field(default_factory=dict)
    baseline: Mapping[str, float] = field(default_factory=dict)


def encode_profile(profile: Profile) -> bytes:
    """The canonical bytes of a profile."""
    return canonical_json(
        {
            "schema": SCHEMA,
            "rows": profile.rows,
            "features": {name: list(counts) for name, counts in profile.features.items()},
            "confidence": list(profile.confidence),
            "predictions": dict(profile.predictions),
            "baseline": dict(profile.baseline),
        }
    )


def decode_profile(data: bytes, edges: ProfileEdges) -> Profile:
    """Read a profile and check that it fits the manifest's edges.

    Raises:
        BundleError: naming what does not fit.
    """
    keys = {"schema", "rows", "features", "confidence", "predictions", "baseline"}
    fields = Fields(parse_json(data, "profile.json", MAX_PROFILE_BYTES), keys, "profile")
    fields.choice("schema", (SCHEMA,))
    profile = Profile(
        rows=fields.integer("rows"),
        features=fields.mapping("features", _counts, maximum=MAX_FEATURES),
        confidence=fields.each("confidence", count, maximum=MAX_EDGES + 1),
        predictions=fields.mapping("predictions", count, maximum=MAX_LABELS),
        baseline=fields.mapping("baseline", finite_number, maximum=64),
    )
    check_canonical(data, encode_profile(profile), "profile.json")
    bins = {feature.name: len(feature.edges) + 1 for feature in edges.features}
    if {name: len(counts) for name, counts in profile.features.items()} != bins:
        raise BundleError("profile.json counts other features or bins than the manifest's edges")
    if profile.confidence and len(profile.confidence) != len(edges.confidence) + 1:
        raise BundleError("profile.json counts other confidence bins than the manifest's edges")
    return profile


def feature_columns(inputs: Mapping[str, Array]) -> dict[str, npt.NDArray[np.float64]]:
    """The watched features of a batch: one float64[rows] per numeric column, by name.

    inputs: one array[rows, ...] per model input, not modified. Columns are counted over the flattened row:
    `pixels[0]` ... ; an input with more than MAX_COLUMNS gives `pixels.mean` and `pixels.std` of its rows instead.
    Text inputs are left out.
    """
    columns: dict[str, npt.NDArray[np.float64]] = {}
    for name in sorted(inputs):
        array = inputs[name]
        if array.ndim == 0 or array.dtype.kind not in "biuf" or array.size == 0:
            continue
        rows = array.reshape(array.shape[0], -1).astype(np.float64)
        if rows.shape[1] > MAX_COLUMNS:
            columns |= {f"{name}.mean": rows.mean(axis=1), f"{name}.std": rows.std(axis=1)}
        elif rows.shape[1] == 1:
            columns[name] = rows[:, 0]
        else:
            columns |= {f"{name}[{index}]": rows[:, index] for index in range(rows.shape[1])}
    return columns


def _counts(value: object, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_EDGES + 1:
        raise BundleError(f"{where} must be a list of at most {MAX_EDGES + 1} counts")
    return tuple(count(item, where) for item in value)
