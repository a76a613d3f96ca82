"""Exports one architecture, builds its training step, and holds the gradients against torch's own, in float64.

The parameters of the file are found in the module by their values: exporters rename, transpose, join and reorder them,
but the numbers stay. Where some can't be found again (a scale was multiplied in), these stay frozen, and the check that
is part of packing joins in: directional derivatives of the emitted loss graph in float64.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from tests.corpus.architecture import BATCH, CROSS_ENTROPY, SQUARES, Architecture, draw_parameters
from tests.corpus.written import Written, feeds_of
from tests.fakes.step_runs import session, step_gradients, trainable_of
from torch import Tensor, nn
from torch.nn import functional

from holdfast.autodiff.build import TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.autodiff.reading import parameters_of
from holdfast.autodiff.selfcheck import check_gradients, measure_gradient
from holdfast.errors import AutodiffError

EXPORTERS = ("torchscript", "dynamo")
OPSET = {"torchscript": 17, "dynamo": 20}
TOLERANCE = 1e-4  # relative 2-norm over the whole gradient, float32 against float64
DIFFERENCES = 1e-2  # of the slope along the gradient, where only float32 is at hand: it sees kinks and rounding
SEED = 3
LABELS = "labels"
Arrays = dict[str, np.ndarray]


@dataclass
class Finding:
    """What became of one architecture through one exporter. `verified` says by what; empty if it isn't."""

    name: str
    source: str
    exporter: str
    opset: int = 0
    nodes: int = 0
    operators: list[str] = field(default_factory=list)
    trainable: int = 0
    batch: str = ""
    built: bool = False
    verified: str = ""
    error: float | None = None
    refusal: str = ""


def examine(architecture: Architecture, exporter: str) -> Finding:
    """Export, build, run, compare."""
    finding = Finding(architecture.name, architecture.source, exporter)
    torch.manual_seed(SEED)
    module, inputs = architecture.make()
    draw_parameters(module)
    module.eval()
    try:
        model, finding.batch = exported(module, inputs, exporter)
    except Exception as error:  # an exporter may fail in any way
        finding.refusal = f"export: {_first_line(error)}"
        return finding
    proto = onnx.load_model_from_string(model)
    _count(proto, finding)
    try:
        _check(architecture, module, model, inputs, finding)
    except AutodiffError as error:
        finding.refusal = str(error)
    except Exception as error:  # the runtime's own, or a defect of ours: neither may hide behind the others
        finding.refusal = f"{type(error).__name__}: {_first_line(error)}"
    return finding


def examine_written(written: Written) -> Finding:
    """Build, run, compare with differences of the loss."""
    model = written.make()
    finding = Finding(written.name, written.source, "written", batch="fixed" if written.large else "dynamic")
    proto = onnx.load_model_from_string(model)
    _count(proto, finding)
    feeds = feeds_of(proto)
    try:
        graphs = build_graphs(model, batch=len(next(iter(feeds.values()))), loss=written.loss)
        finding.trainable = graphs.layout.trainable_element_count
        weights = split_weights(model, layout=graphs.layout).weights
        if written.large:
            finding.error = _apart_from_differences(graphs, weights, feeds)
        else:
            finding.error = float(
                f"{check_gradients(graphs, weights, seed=SEED, examples=feeds).directional_error:.1e}"
            )
        finding.built, finding.verified = True, "differences"
    except AutodiffError as error:
        finding.refusal = str(error)
    return finding


def _apart_from_differences(graphs: TrainingGraphs, weights: bytes, feeds: Arrays) -> float:
    """How far the slope of the loss along the gradient is from the gradient's norm, in float32.

    Raises: AutodiffError: further than rounding and kinks explain.
    """
    given = {**feeds, LABELS: _labels(graphs)}
    gradients, _, loss = step_gradients(graphs, weights, given)
    norm = float(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values())))
    before, run = trainable_of(graphs, weights), session(graphs.loss, weights)
    step, losses = 1e-3 * loss / norm, []
    for sign in (1, -1):
        moved = {n: (v + sign * step / norm * gradients[n]).astype(np.float32) for n, v in before.items()}
        losses.append(float(run.run(["loss"], {**moved, **given})[0]))
    error = abs((losses[0] - losses[1]) / (2 * step) / norm - 1)
    if error > DIFFERENCES:
        raise AutodiffError(f"the gradient is wrong: {error:.1e} from the differences of the loss")
    return float(f"{error:.1e}")


def exported(module: nn.Module, inputs: Mapping[str, Tensor], exporter: str) -> tuple[bytes, str]:
    """The file, and whether its batch is open ("dynamic") or that of the examples ("fixed")."""
    failure: Exception | None = None
    for batch in ("dynamic", "fixed"):
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                return _export(module, inputs, exporter, dynamic=batch == "dynamic"), batch
        except Exception as error:
            failure = error
    raise RuntimeError(_first_line(_root(failure)))


def _export(module: nn.Module, inputs: Mapping[str, Tensor], exporter: str, *, dynamic: bool) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    names = list(inputs)
    options: dict[str, object] = {"input_names": names, "output_names": ["scores"], "opset_version": OPSET[exporter]}
    if exporter == "torchscript":
        axes = {name: {0: "batch"} for name in names} if dynamic else {}
        preserve = torch.onnx.TrainingMode.PRESERVE  # as it is: in evaluation mode, with nothing folded into weights
        target = io.BytesIO()
        torch.onnx.export(
            module, tuple(inputs.values()), target, dynamo=False, dynamic_axes=axes, training=preserve, **options
        )
        return target.getvalue()
    if dynamic:
        batch = torch.export.Dim("batch", min=2, max=64)
        shapes = tuple({0: batch} for _ in names)
        given = (shapes,) if type(module).__name__ == "Answer" else shapes
        options["dynamic_shapes"] = given
    program = torch.onnx.export(module, tuple(inputs.values()), dynamo=True, verbose=False, **options)
    return program.model_proto.SerializeToString()


def _count(proto: onnx.ModelProto, finding: Finding) -> None:
    finding.opset = next(each.version for each in proto.opset_import if each.domain in ("", "ai.onnx"))
    finding.nodes = len(proto.graph.node)
    finding.operators = sorted({node.op_type for node in proto.graph.node})


def _check(
    architecture: Architecture, module: nn.Module, model: bytes, inputs: Mapping[str, Tensor], finding: Finding
) -> None:
    places = _Places(module)
    proto = onnx.load_model_from_string(model)
    stored = {t.name: numpy_helper.to_array(t) for t in parameters_of(proto)}
    found = {name: place for name, value in stored.items() if (place := places.of(value)) is not None}
    trainable = [_literal(name) for name in found] or "all"
    tied = tuple(_literal(name) for name in found) if architecture.tied else ()
    feeds = _feeds(proto, inputs)
    _check_scores(model, feeds, module, inputs)
    graphs = build_graphs(model, batch=BATCH, trainable=trainable, loss=architecture.loss, tied=tied)
    finding.trainable = graphs.layout.trainable_element_count
    weights = split_weights(model, layout=graphs.layout).weights
    labels = _labels(graphs)
    flat = graphs.layout.weights_from_bytes(weights)
    gradient = measure_gradient(graphs.train, graphs.layout, flat, {**feeds, LABELS: labels})
    expected = _torch_gradient(architecture, module, inputs, labels)
    finding.built = True
    error, covered = places.error(found, graphs, gradient, expected)
    finding.error = float(f"{error:.1e}")
    if error > TOLERANCE:
        finding.refusal = f"the gradient is wrong: {error:.1e} from torch's"
        return
    if not covered:
        check_gradients(graphs, weights, seed=SEED, examples=feeds)
    finding.verified = "torch" if covered else "torch in part, differences"


class _Places:
    """Where the numbers of a file stand in the parameters of a module; these lie behind each other in one array."""

    def __init__(self, module: nn.Module) -> None:
        self._starts: dict[str, int] = {}
        parts, self._whole, start = [], {}, 0
        learning = [(name, each) for name, each in module.named_parameters() if each.requires_grad]
        for name, parameter in learning:
            value = parameter.detach().numpy()
            self._starts[name] = start
            self._add(value, start)
            parts.append(value.reshape(-1))
            start += value.size
        self.size = start
        values = np.concatenate(parts)
        order = np.argsort(values, kind="stable")
        self._sorted, self._order = values[order], order

    def _add(self, value: np.ndarray, start: int) -> None:
        index = np.arange(start, start + value.size).reshape(value.shape)
        for seen in (lambda a: a, np.transpose):
            self._whole[seen(value).astype("<f4").tobytes()] = seen(index)

    def of(self, value: np.ndarray) -> np.ndarray | None:
        """int64 of the shape of `value`: where each number stands, or None if one is nowhere or in several places."""
        whole = self._whole.get(value.astype("<f4").tobytes())
        if whole is not None:
            return whole.reshape(value.shape)
        flat = value.reshape(-1)
        left = np.searchsorted(self._sorted, flat, "left")
        right = np.searchsorted(self._sorted, flat, "right")
        if not bool(np.all(right - left == 1)):
            return None
        return self._order[left].reshape(value.shape)

    def start(self, name: str) -> int:
        return self._starts[name]

    def error(
        self, found: Mapping[str, np.ndarray], graphs: TrainingGraphs, gradient: np.ndarray, expected: Arrays
    ) -> tuple[float, bool]:
        """The relative distance over the elements that were found again, and whether these are all that have one."""
        got, seen, wanted = np.zeros(self.size), np.zeros(self.size, bool), np.zeros(self.size)
        start, covered = 0, True
        for entry in graphs.layout.trainable:
            size = int(np.prod(entry.shape))
            place = found.get(entry.name)
            if place is None:
                covered = False
            else:
                np.add.at(got, place.reshape(-1), gradient[start : start + size])
                seen[place.reshape(-1)] = True
            start += size
        for name, value in expected.items():
            wanted[self._starts[name] : self._starts[name] + value.size] = value.reshape(-1)
        missing = np.linalg.norm(wanted[~seen])
        norm = np.linalg.norm(wanted[seen])
        if not seen.any() or norm == 0:
            return 0.0, False
        return float(np.linalg.norm((got - wanted)[seen]) / norm), covered and bool(missing <= 1e-7 * norm)


def _feeds(proto: onnx.ModelProto, inputs: Mapping[str, Tensor]) -> Arrays:
    constants = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in constants]
    given = {name: value.numpy() for name, value in inputs.items()}
    return {name: given[name] for name in names}


def _check_scores(model: bytes, feeds: Arrays, module: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """The file computes what the module computes; if not, the exporter is to blame."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        run = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise AutodiffError(f"export: the runtime refuses the file: {_first_line(error)}") from error
    with torch.no_grad():
        expected = module(*inputs.values()).numpy()
    (scores,) = run.run(None, feeds)
    if scores.shape != expected.shape or not np.allclose(scores, expected, rtol=1e-3, atol=1e-4):
        raise AutodiffError("export: the file computes something else than the module")


def _labels(graphs: TrainingGraphs) -> np.ndarray:
    rng = np.random.default_rng(SEED)
    if graphs.labels.is_float:
        return rng.random(graphs.labels.shape, dtype=np.float32)
    return rng.integers(0, graphs.class_count, graphs.labels.shape)


def _torch_gradient(
    architecture: Architecture, module: nn.Module, inputs: Mapping[str, Tensor], labels: np.ndarray
) -> Arrays:
    torch.manual_seed(SEED)
    wide, _ = architecture.make()  # not a copy: some modules keep tensors of an earlier run, which can't be copied
    wide.load_state_dict(module.state_dict())
    wide.double().eval()
    given = [each.double() if each.is_floating_point() else each for each in inputs.values()]
    scores = wide(*given)
    target = torch.from_numpy(labels)
    if architecture.loss == CROSS_ENTROPY:
        loss = functional.cross_entropy(scores, target)
    elif architecture.loss == SQUARES:
        loss = functional.mse_loss(scores, target.double())
    else:
        loss = functional.binary_cross_entropy_with_logits(scores, target.double())
    loss.backward()
    return {name: p.grad.numpy() for name, p in wide.named_parameters() if p.grad is not None}


def _literal(name: str) -> str:
    """A shell pattern that fits just this name."""
    return "".join(f"[{char}]" if char in "[]*?" else char for char in name)


def _root(error: BaseException | None) -> BaseException | None:
    """What an exporter stumbled over, below what it says about itself."""
    while error is not None and error.__cause__ is not None:
        error = error.__cause__
    return error


def _first_line(error: BaseException | None) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]
