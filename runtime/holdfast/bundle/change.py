"""What a candidate may change of its author-signed ancestor: the weights, within the author's envelope.

The author signed a model, its graphs and how far the weights may move (`change_envelope`). A candidate made by a
federated run keeps all bytes of these but `weights.bin` and what describes the weights: golden outputs, profile, card,
version, lineage. Frozen parameters keep their bytes; the L2 norm of the whole change since then is bounded.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from holdfast.bundle.files import (
    ANCESTOR_MANIFEST_FILE,
    ANCESTOR_SIGNATURE_FILE,
    CARD_FILE,
    GOLDEN_FILE,
    PROFILE_FILE,
    WEIGHTS_FILE,
)
from holdfast.bundle.manifest import FileEntry, Manifest, Parameter
from holdfast.errors import TrustError

_OWN_FILES = {WEIGHTS_FILE, GOLDEN_FILE, PROFILE_FILE, CARD_FILE, ANCESTOR_MANIFEST_FILE, ANCESTOR_SIGNATURE_FILE}


def check_same_but_weights(candidate: Manifest, ancestor: Manifest) -> None:
    """Compare two manifests: only what describes the weights may differ.

    Raises:
        TrustError: naming the first field or file that was changed.
    """
    for field in dataclasses.fields(Manifest):
        allowed = field.name in ("version", "lineage", "files")
        if not allowed and getattr(candidate, field.name) != getattr(ancestor, field.name):
            raise TrustError(f"candidate {candidate.version} changed {field.name}, which its author fixed")
    ours, theirs = _fixed_files(candidate), _fixed_files(ancestor)
    for name in sorted(set(ours) | set(theirs)):
        if ours.get(name) != theirs.get(name):
            raise TrustError(f"candidate {candidate.version} changed the file {name}, which its author fixed")


def check_weight_change(ancestor: Manifest, before: bytes, after: bytes) -> float:
    """Compare the weights of the ancestor (`before`) and of the candidate (`after`) with the author's envelope.

    Returns: the L2 norm of the change, sqrt(sum (after - before)^2), accumulated in float64.
    Raises:
        TrustError: another size, a frozen parameter changed, not finite, or further than `max_update_norm`.
    """
    if len(before) != len(after):
        raise TrustError(f"candidate weights have {len(after)} bytes, the author's have {len(before)}")
    square_sum = 0.0
    for parameter in ancestor.parameters:
        square_sum += _squared_change(parameter, before, after)
    norm, limit = math.sqrt(square_sum), ancestor.change_envelope.max_update_norm
    if norm > limit:
        raise TrustError(
            f"candidate weights moved by {norm:.6g} (L2) from the author's, at most {limit:.6g} is allowed"
        )
    return norm


def _squared_change(parameter: Parameter, before: bytes, after: bytes) -> float:
    old, new = _values(before, parameter), _values(after, parameter)
    if not parameter.trainable:
        if old.tobytes() != new.tobytes():
            raise TrustError(f"candidate changed the frozen parameter {parameter.name!r}")
        return 0.0
    if not np.all(np.isfinite(new)):
        raise TrustError(f"candidate parameter {parameter.name!r} holds NaN or infinity")
    difference = new.astype(np.float64) - old.astype(np.float64)
    return float(np.sum(difference * difference))


def _values(weights: bytes, parameter: Parameter) -> npt.NDArray[np.float32]:
    count = parameter.size_bytes // 4
    return np.frombuffer(weights, dtype="<f4", count=count, offset=parameter.offset_bytes)


def _fixed_files(manifest: Manifest) -> dict[str, FileEntry]:
    return {name: entry for name, entry in manifest.files.items() if name not in _OWN_FILES}
