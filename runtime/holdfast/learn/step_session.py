"""One learning graph of a bundle, loaded on the stock runtime and held to its contract.

The graph is untrusted until its bundle is verified, and even then it may only read the round's own weights: a reference
to any other file is refused before the runtime sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import onnxruntime

from holdfast.errors import TrainingError
from holdfast.inference.onnx_wire import external_locations
from holdfast.inference.session import ORT_ERRORS, PROVIDERS, ort_reason
from holdfast.learn.data import Array

WEIGHTS_LOCATION = "weights.bin"  # what the graphs of a bundle call the flat weights
LABELS = "labels"
NUMPY_TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(bool)": np.bool_}


class LearningSession:
    """A loaded graph with fixed outputs.

    Args:
        graph: serialized ONNX.
        label: what messages call it ("train", "evaluate").
        outputs: outputs that it must have.
        weights: the flat weights, for graphs that refer to frozen parameters; None: the graph refers to none.
        threads: per operator.

    Raises: TrainingError: the runtime refuses the graph, or an input or output of the contract is missing.
    """

    def __init__(
        self, graph: bytes, label: str, outputs: Sequence[str], *, weights: bytes | None, threads: int
    ) -> None:
        self.label = label
        self.runtime = _load(graph, label, weights, threads)
        self.inputs = {node.name: node for node in self.runtime.get_inputs()}
        self.outputs = tuple(node.name for node in self.runtime.get_outputs())
        missing = [name for name in outputs if name not in self.outputs]
        if missing:
            raise TrainingError(f"the {label} graph lacks output {missing[0]!r}; build it for this model")

    @cached_property
    def batch(self) -> int:
        """Samples per run. Raises: TrainingError: the graph takes no labels, or any number of them."""
        shape = self.inputs[LABELS].shape if LABELS in self.inputs else []
        if not shape or not isinstance(shape[0], int) or shape[0] < 1:
            raise TrainingError(f"the {self.label} graph needs an input {LABELS!r} of one fixed size, the batch")
        return int(shape[0])

    def zeros_of(self, name: str) -> Array:
        """Zeros of an input's shape and type. Raises: TrainingError: it is not static, or of another type."""
        node = self.inputs[name]
        dtype = NUMPY_TYPES.get(node.type)
        if dtype is None or not all(isinstance(size, int) for size in node.shape):
            raise TrainingError(
                f"input {name!r} of the {self.label} graph is {node.type}{node.shape}; it can't start at 0"
            )
        return np.zeros(node.shape, dtype=dtype)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """One run; the results are new arrays that share no memory with `feeds`.

        Raises: TrainingError: names, dtypes or shapes don't fit the graph, or an operator failed.
        """
        try:
            results: list[Array] = self.runtime.run(list(outputs), dict(feeds))
        except ORT_ERRORS as error:
            raise TrainingError(f"the {self.label} graph failed: {ort_reason(error)}") from error
        return results


def _load(graph: bytes, label: str, weights: bytes | None, threads: int) -> onnxruntime.InferenceSession:
    outside = set(external_locations(graph))
    elsewhere = sorted(outside - {WEIGHTS_LOCATION})
    if elsewhere:
        raise TrainingError(f"the {label} graph refers to file {elsewhere[0]!r}; only {WEIGHTS_LOCATION!r} is allowed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # 42 % less peak memory on a convolutional net, at the same speed
    if not outside:
        # the last level lays constant weights out anew; where all weights are inputs it only moves the poolings' data
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 4  # fatal only: the exception says it, and logs must not hold a sample's values
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        options.add_external_initializers_from_files_in_memory([WEIGHTS_LOCATION], [weights], [len(weights)])
    try:
        return onnxruntime.InferenceSession(graph, options, providers=list(PROVIDERS))
    except ORT_ERRORS as error:
        raise TrainingError(f"the runtime refuses the {label} graph: {ort_reason(error)}") from error
