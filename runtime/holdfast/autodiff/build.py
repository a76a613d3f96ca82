"""Builds the graphs that a device needs to learn: training step, evaluation, loss, input gradient.

The contract (standard operators, one static batch size B, float32):
    inputs of all      `<parameter>` for each trainable one, the model's data inputs by name, `labels`: int64[B], or
                       float32 of the prediction's shape for losses of numbers
    train              also `learning_rate` float32[]; gives `<parameter>.new` for each, and `loss` float32[] (mean)
    evaluate           gives `loss_sum` float32[], `correct` int64[], `count` int64[] (of labels)
    loss               gives `loss` float32[] (mean), by the forward pass of the training step
    accumulate, apply  a step over several batches, in two graphs (see `accumulation.py`)
    input_gradient     gives `<input>.gradient`: row b is d loss_b / d input_b, independent of the other rows
As the build asks, `train` has more: optimizer state `<parameter>.<slot>` with its `.new`, `<parameter>.anchor` and
`proximal_mu`, `clip_norm`, random numbers `<value>.uniform` (`loss` has them too), and statistics that stay on the
device (`evaluate` and `loss` read them too).
Padding (label -1, or NaN for numbers) changes nothing; the mean of a batch of padding only is 0.
Parameters that don't learn are not in the graphs: they are external data, `weights.bin` at the layout's offsets, so one
graph serves every version of the weights. A graph never holds a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from onnx import TensorProto

from holdfast.autodiff.accumulation import StepParts, emit_accumulate, emit_apply
from holdfast.autodiff.dense import layers_as_products
from holdfast.autodiff.emission import Output, emit, new_writer
from holdfast.autodiff.loss import (
    Loss,
    LossInputs,
    LossValues,
    emit_labelled_rows,
    emit_mean,
    emit_mean_gradient,
    not_zero,
)
from holdfast.autodiff.lowerings import Choice, Lowerings
from holdfast.autodiff.parameters import check_not_shared, choose_trainable, layout_of
from holdfast.autodiff.reading import DataInput, ForwardGraph, parameters_of, parse_model, read_forward
from holdfast.autodiff.registry import loss_named, optimizer_named
from holdfast.autodiff.reverse import Modes, check_rules, emit_forward, emit_gradients
from holdfast.autodiff.rule import Rows
from holdfast.autodiff.simplify import pool_before_relu
from holdfast.autodiff.statistics import FROZEN, LOCAL, running_statistics
from holdfast.autodiff.update import LEARNING_RATE, NEW, StateTensor, UpdateRule, emit_update, extra_inputs, state_of
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout, LayoutEntry

LABELS, LOSS = "labels", "loss"
GRADIENT = ".gradient"


@dataclass(frozen=True, slots=True)
class StepOptions:
    """What a training step does beyond gradient and optimizer.

    batch_norm: "frozen" keeps the running statistics; "averaged" takes those of the batch and lets the running values
        learn and travel like parameters; "local" does too, but they stay on the device (FedBN, Li et al. 2021).
    dropout: whether Dropout nodes drop units; they need random numbers at every step.
    proximal: whether parameters are pulled towards anchors (FedProx).
    clip: whether the gradient's norm over all parameters is bounded.
    accumulate: whether there are graphs for steps over several batches as well; needs frozen statistics.
    lowerings: (form of nodes, way to write their gradients) where a measurement said otherwise than the rules.
    """

    batch_norm: str = FROZEN
    dropout: bool = False
    proximal: bool = False
    clip: bool = False
    accumulate: bool = False
    lowerings: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class TrainingGraphs:
    """The serialized graphs of one model, loss, optimizer and batch size, and the table of its parameters.

    `input_gradient` is None where no gradient can reach a float input (token ids, an operator without a rule in a
    frozen body); `input_gradient_refusal` then says why. `data_inputs` have the batch axis first. `labels` says what
    the labels are. `state` is what `train` hands from step to step; `noise` what it wants as uniform random numbers.
    `statistics` are the trainable entries that learn by averaging and have no gradient. `accumulate` and `apply` are
    there if the options ask for them. `choices` are the forms of nodes whose gradients `train` could write otherwise.
    """

    train: bytes
    evaluate: bytes
    loss: bytes
    input_gradient: bytes | None
    input_gradient_refusal: str
    layout: FlatLayout
    data_inputs: tuple[DataInput, ...]
    batch: int
    class_count: int
    loss_name: str
    optimizer_name: str
    labels: DataInput
    options: StepOptions = field(default_factory=StepOptions)
    state: tuple[StateTensor, ...] = ()
    noise: tuple[DataInput, ...] = ()
    statistics: tuple[str, ...] = ()
    accumulate: bytes | None = None
    apply: bytes | None = None
    choices: tuple[Choice, ...] = ()

    @property
    def parameters(self) -> tuple[LayoutEntry, ...]:
        """The trainable parameters, in layout order: the inputs `<name>` and outputs `<name>.new` of `train`."""
        return self.layout.trainable


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What every emitted graph of one build has in common.

    `differentiated` are the parameters that get a gradient; `statistics` the running values that `train` updates;
    `variable` everything of the layout that is an input of the graphs, by name and shape.
    """

    forward: ForwardGraph
    layout: FlatLayout
    loss: Loss
    rule: UpdateRule
    options: StepOptions
    differentiated: tuple[LayoutEntry, ...]
    statistics: tuple[StateTensor, ...]

    @property
    def variable(self) -> dict[str, tuple[int, ...]]:
        trainable = {entry.name: entry.shape for entry in self.layout.trainable}
        return {**trainable, **{tensor.name: tensor.shape for tensor in self.local_statistics}}

    @property
    def local_statistics(self) -> tuple[StateTensor, ...]:
        return self.statistics if self.options.batch_norm == LOCAL else ()

    @property
    def loss_inputs(self) -> LossInputs:
        return LossInputs(self.forward.logits, LABELS, self.forward.shapes[self.forward.logits])

    @property
    def labels(self) -> DataInput:
        return DataInput(LABELS, self.loss.labels_type, self.loss.labels_shape(self.loss_inputs.shape))


def build_graphs(
    model_bytes: bytes,
    *,
    batch: int,
    trainable: str | Sequence[str] = "all",
    loss: str | Loss = "softmax_cross_entropy",
    optimizer: str = "sgd",
    tied: Sequence[str] = (),
    options: StepOptions | None = None,
) -> TrainingGraphs:
    """Differentiate a served model.

    Args:
        model_bytes: a self-contained ONNX model; for a classifier its float output is the logits or a Softmax of them.
        batch: samples per step, fixed in the graphs; a short batch is padded.
        trainable: "all", or shell patterns over initializer names ("head.*").
        loss, optimizer: names from the registry, with settings behind a colon ("huber:delta=0.5").
        tied: patterns of parameters that several nodes share on purpose.
        options: None takes the safe ones: statistics frozen, nothing dropped, no proximal term, no clipping.

    Raises: AutodiffError: naming the node, parameter or shape that stands in the way, and what to do instead.
    """
    plan = make_plan(
        model_bytes, batch=batch, trainable=trainable, loss=loss, optimizer=optimizer, tied=tied, options=options
    )
    check_rules(plan.forward, [entry.name for entry in plan.differentiated])
    return _graphs(plan, loss if isinstance(loss, str) else loss.name, optimizer)


def make_plan(
    model_bytes: bytes,
    *,
    batch: int,
    trainable: str | Sequence[str],
    loss: str | Loss,
    optimizer: str,
    tied: Sequence[str],
    options: StepOptions | None,
) -> StepPlan:
    """What there is to build, by the arguments of `build_graphs`; whether every node has a rule is not looked at.

    Raises: AutodiffError: naming what stands in the way.
    """
    options = options or StepOptions()
    made_loss = loss_named(loss) if isinstance(loss, str) else loss
    rule = UpdateRule(optimizer_named(optimizer), options.proximal, options.clip)
    model = parse_model(model_bytes)
    forward = layers_as_products(pool_before_relu(read_forward(model, batch, made_loss.head)))
    names = [tensor.name for tensor in parameters_of(model)]
    chosen = choose_trainable(forward, names, trainable)
    statistics = running_statistics(forward, chosen, names, options.batch_norm)
    learning = [*chosen, *statistics] if options.batch_norm != LOCAL else chosen
    check_not_shared(forward, [*chosen, *statistics], tied)
    layout = layout_of(model, learning)
    return StepPlan(
        forward=forward,
        layout=layout,
        loss=made_loss,
        rule=rule,
        options=options,
        differentiated=tuple(entry for entry in layout.trainable if entry.name not in statistics),
        statistics=tuple(StateTensor(e.name, e.shape) for e in layout.entries if e.name in statistics),
    )


def _graphs(plan: StepPlan, loss_name: str, optimizer_name: str) -> TrainingGraphs:
    lowerings = Lowerings(dict(plan.options.lowerings))
    train, noise = _train(plan, lowerings)
    parts = _parts(plan) if plan.options.accumulate else None
    input_gradient, refusal = _input_gradient(plan)
    return TrainingGraphs(
        train=train,
        evaluate=emit_evaluation(plan),
        loss=emit_loss(plan),
        input_gradient=input_gradient,
        input_gradient_refusal=refusal,
        layout=plan.layout,
        data_inputs=plan.forward.data_inputs,
        batch=plan.forward.batch,
        class_count=plan.forward.class_count,
        loss_name=loss_name,
        optimizer_name=optimizer_name,
        labels=plan.labels,
        options=plan.options,
        state=(*plan.local_statistics, *state_of(plan.rule, plan.differentiated)),
        noise=tuple(DataInput(name, int(TensorProto.FLOAT), shape) for name, shape in noise),
        statistics=() if plan.local_statistics else tuple(tensor.name for tensor in plan.statistics),
        accumulate=emit_accumulate(parts) if parts else None,
        apply=emit_apply(parts, LOSS) if parts else None,
        choices=lowerings.open,
    )


def _parts(plan: StepPlan) -> StepParts:
    """What the graphs of steps over several batches are made of."""
    if plan.options.batch_norm != FROZEN:
        raise AutodiffError("steps over several batches cannot take statistics of a batch; freeze them (batch_norm)")
    return StepParts(
        forward=plan.forward,
        layout=plan.layout,
        loss=plan.loss,
        loss_inputs=plan.loss_inputs,
        rule=plan.rule,
        parameters=plan.differentiated,
        inputs=inputs_of(plan),
        dropout=plan.options.dropout,
    )


def _train(plan: StepPlan, lowerings: Lowerings) -> tuple[bytes, list[tuple[str, tuple[int, ...]]]]:
    state = state_of(plan.rule, plan.differentiated)
    extra = [(LEARNING_RATE, ()), *((tensor.name, tensor.shape) for tensor in state)]
    extra += extra_inputs(plan.rule, plan.differentiated)
    out = new_writer(plan.forward, LABELS, *(name for name, _ in extra))
    names = [entry.name for entry in plan.differentiated]
    views = emit_forward(plan.forward, out, names, replace(_modes(plan, out), lowerings=lowerings))
    values = plan.loss.emit(out, plan.loss_inputs, True)
    out.name_output(emit_mean(out, values), LOSS)
    seed = emit_mean_gradient(out, values, plan.rule.gradient_scale)
    gradients = emit_gradients(plan.forward, out, seed, names, views)
    for name in names:
        if name not in gradients:
            raise AutodiffError(f"no gradient reaches parameter {name!r}; leave it out of the trainable ones")
    made = {**out.updates, **emit_update(out, plan.rule, {name: gradients[name] for name in names})}
    shapes = {**plan.variable, **{tensor.name: tensor.shape for tensor in state}}
    outputs: list[Output] = []
    for name in plan.variable:
        outputs.append(_new_output(out, name, made[name], shapes[name]))
    outputs.append((LOSS, TensorProto.FLOAT, ()))
    for tensor in state:
        outputs.append(_new_output(out, tensor.name, made[tensor.name], tensor.shape))
    inputs = [*extra, *out.noise.items()]
    return emit(plan.forward, plan.layout, out, [*inputs_of(plan), *_floats(inputs)], outputs), list(out.noise.items())


def _new_output(out: GraphWriter, name: str, value: str, shape: tuple[int, ...]) -> Output:
    out.name_output(value, name + NEW)
    return name + NEW, TensorProto.FLOAT, shape


def _modes(plan: StepPlan, out: GraphWriter) -> Modes:
    """What the forward pass of a training step needs; the shares of the rows come from the labels."""
    if not plan.statistics:
        return Modes(dropout=plan.options.dropout)
    labelled = emit_labelled_rows(out, plan.loss, plan.loss_inputs)
    count = out.node("ReduceSum", [labelled], keepdims=0)
    shares = out.node("Div", [labelled, not_zero(out, count)])
    return Modes(Rows(out.node("Unsqueeze", [shares, out.integers(0)]), count), plan.options.dropout)


def emit_evaluation(plan: StepPlan) -> bytes:
    out = new_writer(plan.forward, LABELS)
    out.copy(plan.forward.nodes)
    values = plan.loss.emit(out, plan.loss_inputs, False)
    out.name_output(values.total, "loss_sum")
    out.name_output(plan.loss.emit_correct(out, plan.loss_inputs), "correct")
    out.name_output(out.node("Cast", [values.count], to=int(TensorProto.INT64)), "count")
    outputs: list[Output] = [("loss_sum", TensorProto.FLOAT, ())]
    outputs += [(name, TensorProto.INT64, ()) for name in ("correct", "count")]
    return emit(plan.forward, plan.layout, out, inputs_of(plan), outputs)


def emit_loss(plan: StepPlan) -> bytes:
    out = new_writer(plan.forward, LABELS)
    if plan.statistics or plan.options.dropout:
        emit_forward(plan.forward, out, [entry.name for entry in plan.differentiated], _modes(plan, out))
    else:
        out.copy(plan.forward.nodes)
    values = plan.loss.emit(out, plan.loss_inputs, False)
    out.name_output(emit_mean(out, values), LOSS)
    inputs = [*inputs_of(plan), *_floats(out.noise.items())]
    return emit(plan.forward, plan.layout, out, inputs, [(LOSS, TensorProto.FLOAT, ())])


def _input_gradient(plan: StepPlan) -> tuple[bytes | None, str]:
    """The graph, or why there is none: explanations are an extra and never stop a model from learning."""
    floats = [data for data in plan.forward.data_inputs if data.is_float]
    if not floats:
        return None, "the model has no float input"
    names = [data.name for data in floats]
    out = new_writer(plan.forward, LABELS)
    try:
        views = emit_forward(plan.forward, out, names)
        values = plan.loss.emit(out, plan.loss_inputs, True)
        gradients = emit_gradients(plan.forward, out, _gradient_of(values), names, views)
    except AutodiffError as error:
        return None, str(error)
    outputs: list[Output] = []
    for data in floats:
        if data.name not in gradients:
            return None, f"no gradient reaches input {data.name!r}"
        out.name_output(gradients[data.name], data.name + GRADIENT)
        outputs.append((data.name + GRADIENT, TensorProto.FLOAT, data.shape))
    return emit(plan.forward, plan.layout, out, inputs_of(plan), outputs), ""


def _gradient_of(values: LossValues) -> str:
    if values.gradient is None:
        raise AssertionError("the loss was asked for its gradient")
    return values.gradient


def inputs_of(plan: StepPlan) -> list[Output]:
    """What every graph reads: parameters and local statistics, data, labels."""
    data = [(each.name, each.element_type, each.shape) for each in (*plan.forward.data_inputs, plan.labels)]
    return [*_floats(plan.variable.items()), *data]


def _floats(values: Iterable[tuple[str, tuple[int, ...]]]) -> list[Output]:
    return [(name, TensorProto.FLOAT, shape) for name, shape in values]
