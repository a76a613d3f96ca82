"""Two graphs in the place of the training step, for a step over more samples than fit into memory at once.

    accumulate   adds up over batches: `<parameter>.acc` <- + d total / d parameter, `accumulated.total` <- + the sum of
                 the losses, `accumulated.divisor` <- + what a mean divides it by; each as an input and, with `.new`, as
                 an output. Sums instead of means, so that a short batch weighs what it should.
    apply        from these sums, the parameters and the optimizer's state to their new values, and `loss`: the mean.

Rules: k batches of b samples give what one batch of k b gives, up to the rounding of float32. Statistics of the batch
cannot be had this way, so they have to be frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from holdfast.autodiff.emission import Output, emit, new_writer
from holdfast.autodiff.loss import Loss, LossInputs, not_zero
from holdfast.autodiff.reading import ForwardGraph
from holdfast.autodiff.reverse import Modes, emit_forward, emit_gradients
from holdfast.autodiff.update import LEARNING_RATE, NEW, UpdateRule, emit_update, extra_inputs, state_of
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout, LayoutEntry

ACCUMULATED = ".acc"
TOTAL, DIVISOR = "accumulated.total", "accumulated.divisor"


@dataclass(frozen=True, slots=True)
class StepParts:
    """What both graphs are made of. `inputs`: parameters, data and labels, as every graph of a model reads them."""

    forward: ForwardGraph
    layout: FlatLayout
    loss: Loss
    loss_inputs: LossInputs
    rule: UpdateRule
    parameters: tuple[LayoutEntry, ...]
    inputs: Sequence[Output]
    dropout: bool


def emit_accumulate(parts: StepParts) -> bytes:
    """The graph that adds a batch to the sums. Raises: AutodiffError: no gradient reaches a parameter."""
    names = [entry.name for entry in parts.parameters]
    sums = {**{entry.name + ACCUMULATED: entry.shape for entry in parts.parameters}, TOTAL: (), DIVISOR: ()}
    out = new_writer(parts.forward, parts.loss_inputs.labels, *sums)
    views = emit_forward(parts.forward, out, names, Modes(dropout=parts.dropout))
    values = parts.loss.emit(out, parts.loss_inputs, True)
    if values.gradient is None:
        raise AssertionError("the loss was asked for its gradient")
    gradients = emit_gradients(parts.forward, out, values.gradient, names, views)
    missing = [name for name in names if name not in gradients]
    if missing:
        raise AutodiffError(f"no gradient reaches parameter {missing[0]!r}; leave it out of the trainable ones")
    added = {name + ACCUMULATED: gradients[name] for name in names} | {TOTAL: values.total, DIVISOR: values.divisor}
    outputs = [_output(out, name + NEW, out.node("Add", [name, added[name]]), shape) for name, shape in sums.items()]
    inputs = [*parts.inputs, *_floats(sums), *_floats(out.noise)]
    return emit(parts.forward, parts.layout, out, inputs, outputs)


def emit_apply(parts: StepParts, loss_name: str) -> bytes:
    """The graph that makes a step of the sums."""
    shapes = {entry.name: entry.shape for entry in parts.parameters}
    sums = {**{name + ACCUMULATED: shape for name, shape in shapes.items()}, TOTAL: (), DIVISOR: ()}
    state = {tensor.name: tensor.shape for tensor in state_of(parts.rule, parts.parameters)}
    extra = {LEARNING_RATE: (), **state, **dict(extra_inputs(parts.rule, parts.parameters))}
    out = GraphWriter([*shapes, *sums, *extra])
    divisor = not_zero(out, DIVISOR)
    scale = out.node("Div", [parts.rule.gradient_scale or out.scalar(1.0), divisor])
    gradients = {name: out.node("Mul", [name + ACCUMULATED, scale]) for name in shapes}
    made = emit_update(out, parts.rule, gradients)
    outputs = [_output(out, name + NEW, made[name], shape) for name, shape in {**shapes, **state}.items()]
    outputs.append(_output(out, loss_name, out.node("Div", [TOTAL, divisor]), ()))
    return emit(parts.forward, parts.layout, out, _floats({**shapes, **sums, **extra}), outputs)


def _output(out: GraphWriter, name: str, value: str, shape: tuple[int, ...]) -> Output:
    out.name_output(value, name)
    return name, TensorProto.FLOAT, shape


def _floats(values: dict[str, tuple[int, ...]]) -> list[Output]:
    return [(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
