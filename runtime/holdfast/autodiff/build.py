"""Builds the graphs that a device needs to learn: training step, evaluation, loss, input gradient.

The contract (standard operators, one static batch size B, float32):
    inputs of all      `<parameter>` for each trainable one, the model's data inputs by name, `labels` int64[B]
    train              also `learning_rate` float32[]; gives `<parameter>.new` for each, and `loss` float32[] (mean)
    evaluate           gives `loss_sum` float32[], `correct` int64[], `count` int64[]
    loss               gives `loss` float32[] (mean)
    input_gradient     gives `<input>.gradient`: row b is d loss_b / d input_b, independent of the other rows
A row with label -1 is padding: it changes nothing. The mean of a batch of padding only is 0.
Parameters that don't learn are not in the graphs: they are external data, `weights.bin` at the layout's offsets, so one
graph serves every version of the weights. A graph never holds a copy of the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from holdfast.autodiff.externalise import refer_to_weights
from holdfast.autodiff.loss import Loss, emit_mean, emit_mean_gradient
from holdfast.autodiff.parameters import check_not_shared, choose_trainable, layout_of
from holdfast.autodiff.reading import DataInput, ForwardGraph, is_parameter, parse_model, read_forward
from holdfast.autodiff.registry import loss_named, optimizer_named
from holdfast.autodiff.reverse import check_rules, emit_gradients
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout, LayoutEntry

IR_VERSION = 10  # older runtimes refuse files of a newer one
LABELS, LEARNING_RATE, LOSS = "labels", "learning_rate", "loss"
NEW, GRADIENT = ".new", ".gradient"

Output = tuple[str, int, tuple[int, ...]]  # name, element type, shape


@dataclass(frozen=True, slots=True)
class TrainingGraphs:
    """The serialized graphs of one model, loss, optimizer and batch size, and the table of its parameters.

    `input_gradient` is None where no gradient can reach a float input (token ids, an operator without a rule in a
    frozen body); `input_gradient_refusal` then says why. `data_inputs` have the batch axis first.
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

    @property
    def parameters(self) -> tuple[LayoutEntry, ...]:
        """The trainable parameters, in layout order: the inputs `<name>` and outputs `<name>.new` of `train`."""
        return self.layout.trainable


@dataclass(frozen=True, slots=True)
class _Plan:
    """What every emitted graph of one build has in common."""

    forward: ForwardGraph
    layout: FlatLayout
    loss: Loss


def build_graphs(
    model_bytes: bytes,
    *,
    batch: int,
    trainable: str | Sequence[str] = "all",
    loss: str = "softmax_cross_entropy",
    optimizer: str = "sgd",
    tied: Sequence[str] = (),
) -> TrainingGraphs:
    """Differentiate a served model.

    Args:
        model_bytes: a self-contained ONNX classifier; its float output is the logits or a Softmax of them.
        batch: samples per step, fixed in the graphs; a short batch is padded with label -1.
        trainable: "all", or shell patterns over initializer names ("head.*").
        loss, optimizer: names from the registry.
        tied: patterns of parameters that several nodes share on purpose.

    Raises: AutodiffError: naming the node, parameter or shape that stands in the way, and what to do instead.
    """
    model = parse_model(model_bytes)
    forward = read_forward(model, batch)
    names = [tensor.name for tensor in model.graph.initializer if is_parameter(tensor)]
    chosen = choose_trainable(forward, names, trainable)
    check_not_shared(forward, chosen, tied)
    plan = _Plan(forward, layout_of(model, chosen), loss_named(loss))
    update = optimizer_named(optimizer).emit
    input_gradient, refusal = _input_gradient(plan)
    return TrainingGraphs(
        train=_train(plan, update),
        evaluate=_evaluate(plan),
        loss=_loss(plan),
        input_gradient=input_gradient,
        input_gradient_refusal=refusal,
        layout=plan.layout,
        data_inputs=forward.data_inputs,
        batch=forward.batch,
        class_count=forward.class_count,
        loss_name=loss,
        optimizer_name=optimizer,
    )


def _train(plan: _Plan, update: Callable[[GraphWriter, str, str, str], str]) -> bytes:
    out = _writer(plan.forward, LABELS, LEARNING_RATE)
    values = plan.loss.emit(out, plan.forward.logits, LABELS, plan.forward.class_count, True)
    out.name_output(emit_mean(out, values), LOSS)
    names = [entry.name for entry in plan.layout.trainable]
    gradients = emit_gradients(plan.forward, out, emit_mean_gradient(out, values), names)
    outputs: list[Output] = []
    for entry in plan.layout.trainable:
        if entry.name not in gradients:
            raise AutodiffError(f"no gradient reaches parameter {entry.name!r}; leave it out of the trainable ones")
        new = update(out, entry.name, gradients[entry.name], LEARNING_RATE)
        out.name_output(new, entry.name + NEW)
        outputs.append((entry.name + NEW, TensorProto.FLOAT, entry.shape))
    outputs.append((LOSS, TensorProto.FLOAT, ()))
    return _finish(plan, out, [_value(LEARNING_RATE, TensorProto.FLOAT, ())], outputs)


def _evaluate(plan: _Plan) -> bytes:
    out = _writer(plan.forward, LABELS)
    values = plan.loss.emit(out, plan.forward.logits, LABELS, plan.forward.class_count, False)
    out.name_output(values.total, "loss_sum")
    out.name_output(plan.loss.emit_correct(out, plan.forward.logits, LABELS), "correct")
    out.name_output(out.node("Cast", [values.count], to=int(TensorProto.INT64)), "count")
    integers: list[Output] = [(name, TensorProto.INT64, ()) for name in ("correct", "count")]
    return _finish(plan, out, [], [("loss_sum", TensorProto.FLOAT, ()), *integers])


def _loss(plan: _Plan) -> bytes:
    out = _writer(plan.forward, LABELS)
    values = plan.loss.emit(out, plan.forward.logits, LABELS, plan.forward.class_count, False)
    out.name_output(emit_mean(out, values), LOSS)
    return _finish(plan, out, [], [(LOSS, TensorProto.FLOAT, ())])


def _input_gradient(plan: _Plan) -> tuple[bytes | None, str]:
    """The graph, or why there is none: explanations are an extra and never stop a model from learning."""
    floats = [data for data in plan.forward.data_inputs if data.is_float]
    if not floats:
        return None, "the model has no float input"
    try:
        check_rules(plan.forward, [data.name for data in floats])
    except AutodiffError as error:
        return None, str(error)
    out = _writer(plan.forward, LABELS)
    values = plan.loss.emit(out, plan.forward.logits, LABELS, plan.forward.class_count, True)
    if values.gradient is None:
        raise AssertionError("the loss was asked for its gradient")
    gradients = emit_gradients(plan.forward, out, values.gradient, [data.name for data in floats])
    outputs: list[Output] = []
    for data in floats:
        if data.name not in gradients:
            return None, f"no gradient reaches input {data.name!r}"
        out.name_output(gradients[data.name], data.name + GRADIENT)
        outputs.append((data.name + GRADIENT, TensorProto.FLOAT, data.shape))
    return _finish(plan, out, [], outputs), ""


def _writer(forward: ForwardGraph, *reserved: str) -> GraphWriter:
    """A writer that holds the forward nodes already."""
    values = {name for node in forward.nodes for name in (*node.input, *node.output)}
    out = GraphWriter({*values, *forward.initializers, *(data.name for data in forward.data_inputs)})
    for name in reserved:
        out.reserve(name)
    out.copy(forward.nodes)
    return out


def _finish(plan: _Plan, out: GraphWriter, extra: list[ValueInfoProto], outputs: Sequence[Output]) -> bytes:
    """Close the graph, check it in full, and put references in the place of frozen parameters."""
    forward = plan.forward
    learns = {entry.name for entry in plan.layout.trainable}
    kept = [numpy_helper.from_array(v, name) for name, v in forward.initializers.items() if name not in learns]
    inputs = [
        *(_value(entry.name, TensorProto.FLOAT, entry.shape) for entry in plan.layout.trainable),
        *(_value(data.name, data.element_type, data.shape) for data in forward.data_inputs),
        _value(LABELS, TensorProto.INT64, (forward.batch,)),
        *extra,
    ]
    graph = helper.make_graph(
        out.nodes, "holdfast", inputs, [_value(*output) for output in outputs], [*kept, *out.initializers()]
    )
    imports = [helper.make_opsetid(domain, version) for domain, version in forward.opset_imports]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION, producer_name="holdfast")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise AutodiffError(f"the graph that was built is not valid: {error}") from error
    refer_to_weights(model, plan.layout)
    return model.SerializeToString(deterministic=True)


def _value(name: str, element_type: int, shape: tuple[int, ...]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, element_type, shape)
