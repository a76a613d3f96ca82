"""The gradient self-check of a bundle, as it stands in the manifest: at the author's weights and samples."""

from __future__ import annotations

import numpy as np

from holdfast.author.reference import Samples
from holdfast.autodiff.build import TrainingGraphs
from holdfast.autodiff.externalise import SplitModel
from holdfast.autodiff.selfcheck import check_gradients
from holdfast.bundle.manifest import GradientCheck
from holdfast.errors import AutodiffError
from holdfast.inference.session import ORT_ERRORS
from holdfast.update.layout import FlatLayout

# what the runtime, and ONNX's reference evaluator, raise for a graph that they cannot run
RUN_ERRORS: tuple[type[Exception], ...] = (
    *ORT_ERRORS,
    *(NotImplementedError, RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError),
)


def check_of(graphs: TrainingGraphs, split: SplitModel, samples: Samples, *, is_brought: bool) -> GradientCheck:
    """The self-check of autodiff, on the first batch of the samples (repeated if there are fewer rows).

    Raises: AutodiffError: the gradient is wrong, or a step graph that was brought does not run.
    """
    rows = np.arange(graphs.batch) % samples.rows
    examples = {data.name: samples.inputs[data.name][rows] for data in graphs.data_inputs}
    try:
        check = check_gradients(graphs, split.weights, examples=examples)
        if is_brought:  # at other weights too: a copy of a weight that an exporter left in it would not move along
            check_gradients(graphs, _moved(graphs.layout, split.weights), examples=examples)
    except RUN_ERRORS as error:
        if not is_brought:
            raise  # a graph of our own always runs: this is a defect of ours
        raise AutodiffError(f"the step graph does not run: {str(error).splitlines()[0][:200]}") from error
    return GradientCheck(
        directional_error=check.directional_error,
        reference_error=check.reference_error,
        gradient_norm=check.gradient_norm,
        directions=check.directions,
        step=check.step,
        seed=check.seed,
        tolerance=check.tolerance,
    )


def _moved(layout: FlatLayout, weights: bytes) -> bytes:
    """Weights with every trainable value moved by a tenth of its parameter's size, up or down."""
    rng = np.random.Generator(np.random.PCG64(1))
    tensors = dict(layout.unpack(layout.weights_from_bytes(weights)))
    for entry in layout.trainable:
        values = tensors[entry.name]
        size = max(float(np.sqrt(np.mean(np.square(values, dtype=np.float64)))), 1e-2)
        tensors[entry.name] = (values + 0.1 * size * rng.choice([-1.0, 1.0], values.shape)).astype(np.float32)
    return layout.pack(tensors).tobytes()
