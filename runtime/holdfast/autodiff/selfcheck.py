"""Checks a step graph against its model by two methods that don't share its code; the result goes into the manifest.

1. Directional derivatives: the loss graph, evaluated in float64 by ONNX's reference evaluator (plain numpy), is
   differenced centrally along random sign vectors v: (L(p + h v) - L(p - h v)) / 2h, error O(h^2) (Griewank and
   Walther 2008, section 2.1). For a sign vector, E[(g . v)^2] = ||g||^2, so the error is measured against ||g||.
2. Reference run: the step graph itself, in float64 by the same evaluator, against the float32 result of the runtime.

Both look at the emitted bytes and know nothing of how they were made, so a step graph that somebody brought along is
checked the same way. The gradient is read off the first step: from p.new for plain descent, from an optimizer's own
state otherwise; anchors are put at the parameters and the clipping bound out of reach.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from holdfast.autodiff.build import LABELS, LOSS, TrainingGraphs
from holdfast.autodiff.externalise import WEIGHTS_LOCATION, join_weights
from holdfast.autodiff.optimizer import Probe
from holdfast.autodiff.reading import DataInput
from holdfast.autodiff.reference_operators import OPERATORS
from holdfast.autodiff.registry import optimizer_named
from holdfast.autodiff.update import ANCHOR, CLIP_NORM, LEARNING_RATE, NEW, PROXIMAL_MU
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout, Floats

# A power of two, so large that p.new = p - rate * g keeps all digits of g: g = (p - p.new) / rate is exact to float32.
PROBE_RATE = float(2**40)
# Of the central difference, in float64; a smaller one where the last did not agree. The first is the most exact for
# smooth models: truncation and cancellation are both about 1e-10. Across kinks the error is what share of the rectified
# values changes sign within a step, and falls with it, until cancellation is 1e-7. A wrong gradient stays wrong.
STEPS = (1e-5, 1e-6, 1e-7, 1e-8)
TOLERANCE = 1e-4  # a wrong rule is off by more than 1e-2; float32 arithmetic by less than 1e-5
DIRECTIONS = 4

Feeds = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class GradientCheck:
    """What was measured: errors relative to the norm of the whole gradient, and with which settings."""

    directional_error: float
    reference_error: float
    gradient_norm: float
    directions: int
    step: float
    seed: int
    tolerance: float

    @property
    def passed(self) -> bool:
        return max(self.directional_error, self.reference_error) <= self.tolerance

    def to_fields(self) -> dict[str, float | int]:
        """Plain JSON values for the manifest."""
        return {
            "directional_error": self.directional_error,
            "reference_error": self.reference_error,
            "gradient_norm": self.gradient_norm,
            "directions": self.directions,
            "step": self.step,
            "seed": self.seed,
            "tolerance": self.tolerance,
        }


def check_gradients(
    graphs: TrainingGraphs, weights: bytes, *, seed: int = 0, examples: Feeds | None = None
) -> GradientCheck:
    """Check the step graph at the given weights.

    Args:
        weights: `weights.bin` for `graphs.layout`.
        seed: of the random directions, labels and (without `examples`) standard normal inputs.
        examples: one array per data input, batch axis first; needed if an input is not float.

    Raises: AutodiffError: an error is above the tolerance, or `examples` are needed and missing.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    feeds = dict(examples) if examples is not None else _random_inputs(graphs.data_inputs, rng)
    feeds[LABELS] = _random_labels(graphs, rng)
    feeds.update({noise.name: rng.random(noise.shape, dtype=np.float32) for noise in graphs.noise})
    flat = graphs.layout.weights_from_bytes(weights)
    probe = optimizer_named(graphs.optimizer_name).probe
    runtime = measure_gradient(graphs.train, graphs.layout, flat, feeds, probe=probe, statistics=graphs.statistics)
    reference = _reference_gradient(graphs, weights, feeds, probe)
    norm = float(np.linalg.norm(reference))
    scale = norm if norm > 0 else 1.0
    directional, step = _directional_error(graphs, weights, feeds, runtime, rng)
    check = GradientCheck(
        directional_error=directional / scale,
        reference_error=float(np.linalg.norm(runtime - reference)) / scale,
        gradient_norm=norm,
        directions=DIRECTIONS,
        step=step,
        seed=seed,
        tolerance=TOLERANCE,
    )
    if not check.passed:
        raise AutodiffError(
            f"the step graph's gradient is wrong: directional error {check.directional_error:.2e}, "
            f"reference error {check.reference_error:.2e}, allowed {TOLERANCE:.0e}"
        )
    return check


def measure_gradient(
    train: bytes,
    layout: FlatLayout,
    weights: Floats,
    feeds: Feeds,
    *,
    optimize: bool = True,
    probe: Probe | None = None,
    statistics: Collection[str] = (),
) -> NDArray[np.float64]:
    """The gradient that a step graph applies, read off one step on the runtime.

    Args:
        weights: float32[layout.element_count].
        feeds: the data inputs, `labels`, and random numbers if the graph wants some.
        optimize: False runs the graph as it is written, without the runtime's graph optimisations.
        probe: how the graph's optimizer shows the gradient; None: plain descent.
        statistics: entries that learn by averaging and have no gradient; they count as 0.

    Returns: float64[layout.trainable_element_count] with float32 precision.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    raw = weights.tobytes()
    options.add_external_initializers_from_files_in_memory([WEIGHTS_LOCATION], [raw], [len(raw)])
    session = onnxruntime.InferenceSession(train, options, providers=["CPUExecutionProvider"])
    shapes = {node.name: tuple(node.shape) for node in session.get_inputs()}
    tensors = layout.unpack(weights)
    given = _step_feeds(shapes, tensors, feeds)
    before = {entry.name: tensors[entry.name] for entry in layout.trainable}
    reading = _Reading(probe or Probe(), frozenset(statistics))
    outputs = reading.outputs(before)
    return reading.gradient(before, session.run(outputs, given))


def _step_feeds(
    shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, NDArray[np.floating]], feeds: Feeds
) -> dict[str, NDArray[np.generic]]:
    """What a first step is fed: the weights, zero state, anchors where the weights are, a bound out of reach."""
    found: dict[str, NDArray[np.generic]] = {}
    for name, shape in shapes.items():
        if name in feeds:
            found[name] = feeds[name]
        elif name in tensors:
            found[name] = tensors[name]
        elif name.endswith(ANCHOR):
            found[name] = tensors[name.removesuffix(ANCHOR)]
        else:
            value = {LEARNING_RATE: PROBE_RATE, PROXIMAL_MU: 0.5, CLIP_NORM: float(np.finfo(np.float32).max)}
            found[name] = np.full(shape, value.get(name, 0.0), dtype=np.float32)
    return found


@dataclass(frozen=True, slots=True)
class _Reading:
    """Where a step shows the gradient of each parameter. Running statistics have none."""

    probe: Probe
    statistics: frozenset[str]

    def outputs(self, parameters: Iterable[str]) -> list[str]:
        """The output to look at, per parameter."""
        slot = f".{self.probe.slot}" if self.probe.slot else ""
        return [name + NEW if name in self.statistics else f"{name}{slot}{NEW}" for name in parameters]

    def gradient(
        self, before: Mapping[str, NDArray[np.floating]], after: Sequence[NDArray[np.floating]]
    ) -> NDArray[np.float64]:
        """The parameters' gradients behind each other."""
        parts = []
        for (name, old), new in zip(before.items(), after, strict=True):
            start, made = old.astype(np.float64), new.astype(np.float64)
            shown = made / self.probe.factor if self.probe.slot else (start - made) / PROBE_RATE
            gradient = np.zeros_like(start) if name in self.statistics else shown - self.probe.decay * start
            parts.append(gradient.reshape(-1))
        return np.concatenate(parts)


def _reference_gradient(graphs: TrainingGraphs, weights: bytes, feeds: Feeds, probe: Probe) -> NDArray[np.float64]:
    evaluator = _float64_evaluator(graphs.train, weights, graphs.layout)
    model = onnx.load_model_from_string(graphs.train).graph
    shapes = {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in model.input}
    tensors = graphs.layout.unpack(graphs.layout.weights_from_bytes(weights))
    given = _feeds64(_step_feeds(shapes, tensors, feeds))
    before = _trainable64(graphs.layout, weights)
    reading = _Reading(probe, frozenset(graphs.statistics))
    return reading.gradient(before, _evaluate(evaluator, reading.outputs(before), given))


def _directional_error(
    graphs: TrainingGraphs, weights: bytes, feeds: Feeds, gradient: NDArray[np.float64], rng: np.random.Generator
) -> tuple[float, float]:
    """The largest |(L(p + h v) - L(p - h v)) / 2h - g . v| over the random directions, and the step h.

    Of the first step that agrees within the tolerance, or of the one that comes nearest.
    """
    evaluator = _float64_evaluator(graphs.loss, weights, graphs.layout)
    tensors = _trainable64(graphs.layout, weights)
    every = _feeds64(graphs.layout.unpack(graphs.layout.weights_from_bytes(weights)))
    kept = {state.name: every[state.name] for state in graphs.state if state.name in every}
    given = {**_feeds64(feeds), **kept}
    seeds = rng.integers(0, 2**63, DIRECTIONS)
    allowed = TOLERANCE * float(np.linalg.norm(gradient))

    def error(seed: int, step: float) -> float:
        signs_of = np.random.Generator(np.random.PCG64(seed))
        signs = {name: signs_of.choice([-1.0, 1.0], tensor.shape) for name, tensor in tensors.items()}
        slope = float(np.concatenate([sign.reshape(-1) for sign in signs.values()]) @ gradient)
        ahead, behind = (
            float(_evaluate(evaluator, [LOSS], {**given, **{n: t + h * signs[n] for n, t in tensors.items()}})[0])
            for h in (step, -step)
        )
        return abs((ahead - behind) / (2 * step) - slope)

    found = []
    for step in STEPS:
        found.append((max(error(int(seed), step) for seed in seeds), step))
        if found[-1][0] <= allowed:
            break
    return min(found)


def _evaluate(evaluator: ReferenceEvaluator, names: list[str], feeds: Feeds) -> list[NDArray[np.float64]]:
    return cast("list[NDArray[np.float64]]", evaluator.run(names, dict(feeds)))


def _float64_evaluator(graph: bytes, weights: bytes, layout: FlatLayout) -> ReferenceEvaluator:
    """The graph with its frozen weights in place and every float32 turned into float64."""
    model = onnx.load_model_from_string(join_weights(graph, weights, layout))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.graph.initializer:
        _widen(tensor)
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape" and not node.attribute:  # float32 zeros by default
            zero = numpy_helper.from_array(np.zeros(1, dtype=np.float64))
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen(attribute.t)
    return ReferenceEvaluator(model, new_ops=list(OPERATORS))


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type == TensorProto.FLOAT:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def _trainable64(layout: FlatLayout, weights: bytes) -> dict[str, NDArray[np.float64]]:
    tensors = layout.unpack(layout.weights_from_bytes(weights))
    return {entry.name: tensors[entry.name].astype(np.float64) for entry in layout.trainable}


def _feeds64(feeds: Feeds) -> dict[str, NDArray[np.generic]]:
    return {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feeds.items()}


def _random_labels(graphs: TrainingGraphs, rng: np.random.Generator) -> NDArray[np.generic]:
    """Classes, or numbers in 0..1, which every loss of numbers takes."""
    if graphs.labels.is_float:
        return rng.random(graphs.labels.shape, dtype=np.float32)
    return rng.integers(0, graphs.class_count, graphs.labels.shape)


def _random_inputs(inputs: tuple[DataInput, ...], rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    integers = [data.name for data in inputs if not data.is_float]
    if integers:
        raise AutodiffError(f"input {integers[0]!r} is not float32; pass examples for the gradient check")
    return {data.name: rng.standard_normal(data.shape).astype(np.float32) for data in inputs}
