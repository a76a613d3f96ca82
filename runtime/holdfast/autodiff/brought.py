"""A step graph that the author brings along, made by another tool: held to the contract, and finished into a step.

Two forms, told apart by their outputs; the inputs of both are those of `graphs/loss.onnx` (parameters, data, labels):

    gradients    `loss`, and `<parameter>.gradient` = d loss / d parameter for each: the optimizer is added here
    step         `loss`, and `<parameter>.new`: it has the optimizer in it, `learning_rate` and its state as inputs

Rules: standard operators only, the contract's names, dtypes and static shapes and no others, no file but the bundle's
weights, nothing drawn at random, bounded size. Initializers that bear the name of a parameter that does not learn
become references to the bundle's weights; a parameter that learns has to be an input. Evaluation and loss are still
made from the served model, so what was brought is measured against the model and never against itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, inliner, numpy_helper, shape_inference

from holdfast.autodiff.build import GRADIENT, LOSS, StepPlan, TrainingGraphs, emit_evaluation, emit_loss, inputs_of
from holdfast.autodiff.emission import Output, emit
from holdfast.autodiff.reading import DEFAULT_DOMAINS, EMITTED_OPSET
from holdfast.autodiff.statistics import FROZEN
from holdfast.autodiff.update import LEARNING_RATE, NEW, emit_update, extra_inputs, state_of
from holdfast.autodiff.writer import GraphWriter
from holdfast.errors import AutodiffError

MAX_STEP_GRAPH_BYTES = 268_435_456  # 256 MiB: a graph holds constants, and perhaps parameters that do not learn
MAX_NODES = 200_000  # the largest step graphs of our own have a tenth of it
OLDEST_OPSET = 13  # the update is written in operators as they are since then
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def build_around(plan: StepPlan, step_graph: bytes, loss_name: str, optimizer_name: str) -> TrainingGraphs:
    """The graphs of a plan with a training step that was brought.

    Raises: AutodiffError: naming what breaks the contract.
    """
    options = plan.options
    if options.batch_norm != FROZEN or options.dropout or options.accumulate:
        raise AutodiffError(
            "a step graph that is brought has its own forward pass: leave out batch_norm, dropout and accumulate"
        )
    return TrainingGraphs(
        train=finished_step(plan, step_graph),
        evaluate=emit_evaluation(plan),
        loss=emit_loss(plan),
        input_gradient=None,
        input_gradient_refusal="the step graph was brought along",
        layout=plan.layout,
        data_inputs=plan.forward.data_inputs,
        batch=plan.forward.batch,
        class_count=plan.forward.class_count,
        loss_name=loss_name,
        optimizer_name=optimizer_name,
        labels=plan.labels,
        options=options,
        state=state_of(plan.rule, plan.differentiated),
    )


def finished_step(plan: StepPlan, step_graph: bytes) -> bytes:
    """The training step that a graph of either form gives. Raises: AutodiffError: naming what breaks the contract."""
    model = _parsed(step_graph)
    _check_operators(model)
    outputs = {value.name for value in model.graph.output}
    shapes = {entry.name: entry.shape for entry in plan.differentiated}
    has_gradients = any(name + GRADIENT in outputs for name in shapes)
    state = [(tensor.name, tensor.shape) for tensor in state_of(plan.rule, plan.differentiated)]
    extra = [(LEARNING_RATE, ()), *state, *extra_inputs(plan.rule, plan.differentiated)]
    floats: list[Output] = [(name, TensorProto.FLOAT, shape) for name, shape in extra]
    inputs = inputs_of(plan)
    made = GRADIENT if has_gradients else NEW
    wanted: list[Output] = [(name + made, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    if not has_gradients:
        wanted += [(name + NEW, TensorProto.FLOAT, shape) for name, shape in state]
    _check_values("input", model.graph.input, [*inputs, *([] if has_gradients else floats)])
    _check_values("output", model.graph.output, [*wanted, (LOSS, TensorProto.FLOAT, ())])
    _check_initializers(plan, model)
    out = GraphWriter(_names(model.graph))
    out.copy(model.graph.node)
    found: list[Output] = [(LOSS, TensorProto.FLOAT, ())]
    if has_gradients:
        found += _updated(plan, out, [*shapes.items(), *state], extra)
    else:
        found += wanted
    forward = replace(
        plan.forward,
        initializers={tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer},
        opset_imports=tuple((each.domain, each.version) for each in model.opset_import),
    )
    return emit(forward, plan.layout, out, [*inputs, *floats], found)


def _updated(
    plan: StepPlan,
    out: GraphWriter,
    values: list[tuple[str, tuple[int, ...]]],
    extra: list[tuple[str, tuple[int, ...]]],
) -> list[Output]:
    """Append the optimizer to the gradients; returns the outputs."""
    for name, _ in extra:
        out.reserve(name)
    gradients = {entry.name: entry.name + GRADIENT for entry in plan.differentiated}
    if plan.rule.gradient_scale:
        gradients = {name: out.node("Mul", [value, plan.rule.gradient_scale]) for name, value in gradients.items()}
    made = emit_update(out, plan.rule, gradients)
    for name, _ in values:
        out.name_output(made[name], name + NEW)
    return [(name + NEW, TensorProto.FLOAT, shape) for name, shape in values]


def _parsed(data: bytes) -> onnx.ModelProto:
    """The model with its functions inlined and every shape inferred."""
    if len(data) > MAX_STEP_GRAPH_BYTES:
        raise AutodiffError(f"the step graph has {len(data)} bytes, at most {MAX_STEP_GRAPH_BYTES} are read")
    try:
        model = onnx.load_model_from_string(data)
        outside = [t.name for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        if outside:
            raise AutodiffError(f"initializer {outside[0]!r} of the step graph lies in another file; make it an input")
        _check_version(model)
        if model.functions:
            model = inliner.inline_local_functions(model)
        onnx.checker.check_model(model)
        return shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    except (
        *(DecodeError, onnx.checker.ValidationError, shape_inference.InferenceError, ValueError, RuntimeError),
    ) as error:
        raise AutodiffError(f"the step graph is not a valid ONNX model: {str(error).splitlines()[0][:200]}") from error


def _check_version(model: onnx.ModelProto) -> None:
    versions = [each.version for each in model.opset_import if each.domain in DEFAULT_DOMAINS]
    newest = max(EMITTED_OPSET, onnx.defs.onnx_opset_version())
    if not OLDEST_OPSET <= max(versions, default=0) <= newest:
        raise AutodiffError(
            f"the step graph is of operator set {max(versions, default=0)}; {OLDEST_OPSET} to {newest} are taken"
        )


def _check_operators(model: onnx.ModelProto) -> None:
    nodes = list(_every_node(model.graph))
    if len(nodes) > MAX_NODES:
        raise AutodiffError(f"the step graph has {len(nodes)} nodes, at most {MAX_NODES} are taken")
    for node in nodes:
        if node.domain not in DEFAULT_DOMAINS:
            raise AutodiffError(
                f"node {node.name!r} ({node.domain}.{node.op_type}) of the step graph is no standard operator; "
                "devices have nothing but ai.onnx"
            )
        if node.op_type in RANDOM:
            raise AutodiffError(f"node {node.name!r} ({node.op_type}) of the step graph draws at random; steps repeat")
    strange = [each.domain for each in model.opset_import if each.domain not in DEFAULT_DOMAINS]
    if strange:
        raise AutodiffError(f"the step graph imports the operators of {strange[0]!r}; devices have only ai.onnx")


def _every_node(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _every_node(body)


def _check_values(kind: str, values: object, wanted: list[Output]) -> None:
    """Compare declared inputs or outputs with the contract, by name, dtype and shape."""
    found: Mapping[str, ValueInfoProto] = {value.name: value for value in values}  # type: ignore[attr-defined]
    names = [name for name, _, _ in wanted]
    unknown, missing = sorted(set(found) - set(names)), [name for name in names if name not in found]
    if missing:
        raise AutodiffError(f"the step graph lacks the {kind} {missing[0]!r}; its {kind}s are: {', '.join(names)}")
    if unknown:
        raise AutodiffError(f"the step graph has the {kind} {unknown[0]!r}; its {kind}s are: {', '.join(names)}")
    for name, element_type, shape in wanted:
        tensor = found[name].type.tensor_type
        got = tuple(size.dim_value if size.HasField("dim_value") else None for size in tensor.shape.dim)
        if tensor.elem_type != element_type or got != shape:
            expected = f"{TensorProto.DataType.Name(element_type).lower()}{list(shape)}"
            shown = f"{TensorProto.DataType.Name(tensor.elem_type).lower()}{list(got)}"
            raise AutodiffError(f"{kind} {name!r} of the step graph is {shown}, expected {expected}")


def _check_initializers(plan: StepPlan, model: onnx.ModelProto) -> None:
    """A parameter that does not learn may be an initializer of its name; of another shape it is another parameter."""
    entries = {entry.name: entry for entry in plan.layout.entries}
    for tensor in model.graph.initializer:
        entry = entries.get(tensor.name)
        if entry is None:
            continue
        if entry.trainable:
            raise AutodiffError(
                f"parameter {tensor.name!r} learns, and is a constant in the step graph; drop its value"
            )
        if tensor.data_type != TensorProto.FLOAT or tuple(tensor.dims) != entry.shape:
            raise AutodiffError(
                f"initializer {tensor.name!r} of the step graph has the name of a parameter and not its shape "
                f"{list(entry.shape)}; rename it"
            )


def _names(graph: GraphProto) -> set[str]:
    values = {value.name for value in (*graph.input, *graph.output)} | {tensor.name for tensor in graph.initializer}
    return values | {name for node in _every_node(graph) for name in (*node.input, *node.output)}
