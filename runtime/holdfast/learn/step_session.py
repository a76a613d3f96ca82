"""One learning graph of a bundle, loaded on the stock runtime and held to its contract.

The graph is untrusted until its bundle is verified, and even then it may only read the round's own weights: a reference
to any other file is refused before the runtime sees it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnxruntime

from holdfast.errors import TrainingError
from holdfast.inference.onnx_wire import external_locations
from holdfast.inference.session import ORT_ERRORS, PROVIDERS, ort_reason
from holdfast.learn.data import Array

WEIGHTS_LOCATION = "weights.bin"  # what the graphs of a bundle call the flat weights
LABELS = "labels"


class LearningSession:
    """A loaded graph with fixed outputs and a fixed batch.

    Args:
        graph: serialized ONNX.
        label: what messages call it ("train", "evaluate").
        outputs: the outputs that every run returns, in order.
        weights: the flat weights, for graphs that refer to frozen parameters; None: the graph refers to none.
        threads: per operator.

    Raises: TrainingError: the runtime refuses the graph, or an input or output of the contract is missing.
    """

    def __init__(
        self, graph: bytes, label: str, outputs: Sequence[str], *, weights: bytes | None, threads: int
    ) -> None:
        self._label = label
        self._outputs = list(outputs)
        self._session = _load(graph, label, weights, threads)
        inputs = {node.name: node for node in self._session.get_inputs()}
        given = {node.name for node in self._session.get_outputs()}
        missing = [name for name in outputs if name not in given]
        if missing:
            raise TrainingError(f"the {label} graph lacks output {missing[0]!r}; build it for this model")
        shape = inputs[LABELS].shape if LABELS in inputs else []
        if len(shape) != 1 or not isinstance(shape[0], int) or shape[0] < 1:
            raise TrainingError(f"the {label} graph needs an input {LABELS!r} of one fixed size, the batch")
        self.batch: int = shape[0]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """One run; the results are new arrays that share no memory with `feeds`.

        Raises: TrainingError: names, dtypes or shapes don't fit the graph, or an operator failed.
        """
        try:
            results: list[Array] = self._session.run(self._outputs, dict(feeds))
        except ORT_ERRORS as error:
            raise TrainingError(f"the {self._label} graph failed: {ort_reason(error)}") from error
        return results


def _load(graph: bytes, label: str, weights: bytes | None, threads: int) -> onnxruntime.InferenceSession:
    elsewhere = sorted(set(external_locations(graph)) - {WEIGHTS_LOCATION})
    if elsewhere:
        raise TrainingError(f"the {label} graph refers to file {elsewhere[0]!r}; only {WEIGHTS_LOCATION!r} is allowed")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # 42 % less peak memory on a convolutional net, at the same speed
    options.log_severity_level = 4  # fatal only: the exception says it, and logs must not hold a sample's values
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if weights is not None:
        options.add_external_initializers_from_files_in_memory([WEIGHTS_LOCATION], [weights], [len(weights)])
    try:
        return onnxruntime.InferenceSession(graph, options, providers=list(PROVIDERS))
    except ORT_ERRORS as error:
        raise TrainingError(f"the runtime refuses the {label} graph: {ort_reason(error)}") from error
