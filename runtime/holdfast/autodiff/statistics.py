"""Which running statistics a training step updates, and whether they stay frozen, stay local or are averaged."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from holdfast.autodiff.reading import ForwardGraph, node_label
from holdfast.autodiff.reverse import active_nodes
from holdfast.errors import AutodiffError

FROZEN, LOCAL, AVERAGED = "frozen", "local", "averaged"
_MEAN, _VARIANCE = 3, 4  # inputs of BatchNormalization


def running_statistics(
    forward: ForwardGraph, trainable: Collection[str], parameters: Sequence[str], mode: str
) -> list[str]:
    """The running means and variances of every BatchNormalization that a gradient passes; none if they are frozen.

    A normalisation in a part of the model that doesn't learn keeps its statistics in every mode.

    Raises: AutodiffError: an unknown mode, or statistics that are computed instead of stored.
    """
    if mode not in (FROZEN, LOCAL, AVERAGED):
        raise AutodiffError(f"batch_norm must be one of {FROZEN}, {LOCAL}, {AVERAGED}; got {mode!r}")
    if mode == FROZEN:
        return []
    found = []
    for node in active_nodes(forward, trainable):
        if node.op_type != "BatchNormalization":
            continue
        for name in (node.input[_MEAN], node.input[_VARIANCE]):
            if name not in parameters:
                raise AutodiffError(f"the statistics of node {node_label(node)} are not stored as initializers")
            found.append(name)
    return found
