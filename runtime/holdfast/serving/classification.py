"""The classification extension: an output as its best classes, "score:index" or "score:index:label" each. Pure.

Rules: best first, equal scores by index, NaN last; the first axis of an output with two axes or more counts rows, which
are classified each for themselves; an output of one axis is one row. Source: Triton's classification extension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from holdfast.errors import InvalidTensorError
from holdfast.inference.tensors import Array, dtype_name
from holdfast.serving.datatypes import object_array


def classified(name: str, array: Array, classes: int, labels: Sequence[str] = ()) -> Array:
    """The `classes` best elements of each row: object[rows, k] (object[k] of one row), each b"score:index:label".

    A class beyond `labels`, or with an empty one, stands as b"score:index". Fewer than `classes` if a row has fewer
    elements.

    Raises:
        InvalidTensorError: the output holds no numbers.
    """
    if array.dtype.kind not in "fiu":
        raise InvalidTensorError(f"output '{name}' is {dtype_name(array)}; only numbers can be classified")
    rows = array.reshape(array.shape[0], -1) if array.ndim > 1 else array.reshape(1, -1)
    kept = min(classes, rows.shape[1])
    scores = rows.astype(np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :kept]  # NaN sorts last, also when negated
    best = np.take_along_axis(scores, order, axis=1)
    pairs = zip(best.ravel().tolist(), order.ravel().tolist(), strict=True)
    names = [f":{label}" if label else "" for label in labels]
    texts = [f"{score:f}:{index}{names[index] if index < len(names) else ''}".encode() for score, index in pairs]
    return object_array(texts, (len(rows), kept) if array.ndim > 1 else (kept,))
