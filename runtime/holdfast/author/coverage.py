"""Can this model be trained as asked, and what would a step cost? Every node with its rule, or why it is in the way.

The answer is the builder's own: the graphs are built and thrown away. Costs are counted from the static shapes:
multiply-adds of matrix products and convolutions (Griewank and Walther 2008, section 4.6: a gradient costs 2 more of
what its node costs forward, one per factor). They say which of two models is dearer, not how many milliseconds a step
takes. The memory is estimated from the step graph itself by `step_memory`, which says how near that is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from onnx import NodeProto

from holdfast.author.pack import TrainingPlan, build_planned
from holdfast.author.step_memory import peak_bytes
from holdfast.autodiff.parameters import choose_trainable, layout_of
from holdfast.autodiff.reading import ForwardGraph, parameters_of, parse_model, read_forward
from holdfast.autodiff.registry import loss_named, rule_for
from holdfast.autodiff.reverse import active_nodes
from holdfast.errors import AutodiffError

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class NodeCoverage:
    """One node. `is_passed`: a gradient goes through it, for the parameters that were asked for."""

    name: str
    operator: str
    has_rule: bool
    is_passed: bool
    reason: str
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one step: multiply-adds forward and in all, and bytes.

    `activation_bytes` are those of every value of the forward pass; `memory_bytes` what a process needs for a step
    beyond the runtime's own 50 MiB, None where no step can be built.
    """

    batch: int
    parameters: int
    trainable_parameters: int
    forward_multiply_adds: int
    step_multiply_adds: int
    activation_bytes: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """`refusal` is empty if the model is trainable as asked. `cost` is None where shapes could not be found."""

    nodes: tuple[NodeCoverage, ...]
    refusal: str
    cost: Cost | None

    @property
    def is_trainable(self) -> bool:
        return not self.refusal


def measure_coverage(model_bytes: bytes, plan: TrainingPlan) -> Coverage:
    """Look at every node of a model.

    Raises: AutodiffError: not a valid, self-contained ONNX model, or no such loss.
    """
    model = parse_model(model_bytes)
    names = [tensor.name for tensor in parameters_of(model)]
    head = loss_named(plan.loss).head
    try:
        forward = read_forward(model, plan.batch, head)
    except AutodiffError as error:
        return Coverage(tuple(_unread(node) for node in model.graph.node), str(error), None)
    try:
        chosen = choose_trainable(forward, names, plan.trainable)
    except AutodiffError as error:
        return Coverage(tuple(_covered(forward, node, is_passed=False) for node in forward.nodes), str(error), None)
    passed = {tuple(node.output) for node in active_nodes(forward, chosen)}
    nodes = tuple(_covered(forward, node, is_passed=tuple(node.output) in passed) for node in forward.nodes)
    layout = layout_of(model, chosen)
    refusal, memory = "", None
    try:
        train = build_planned(model_bytes, plan).train
        memory = peak_bytes(train, FLOAT_BYTES * layout.element_count)
    except AutodiffError as error:
        refusal = str(error)
    forward_cost = sum(node.multiply_adds for node in nodes)
    activations = sum(math.prod(shape) for name, shape in forward.shapes.items() if name not in forward.initializers)
    cost = Cost(
        batch=plan.batch,
        parameters=layout.element_count,
        trainable_parameters=layout.trainable_element_count,
        forward_multiply_adds=forward_cost,
        step_multiply_adds=forward_cost + 2 * sum(node.multiply_adds for node in nodes if node.is_passed),
        activation_bytes=FLOAT_BYTES * activations,
        memory_bytes=memory,
    )
    return Coverage(nodes, refusal, cost)


def _unread(node: NodeProto) -> NodeCoverage:
    has_rule = rule_for(node) is not None
    reason = "" if has_rule else "no gradient rule; not known whether one is needed"
    return NodeCoverage(node.name or node.output[0], node.op_type, has_rule, False, reason, 0)


def _covered(forward: ForwardGraph, node: NodeProto, *, is_passed: bool) -> NodeCoverage:
    has_rule = rule_for(node) is not None
    reason = ""
    if not has_rule:
        reason = "no gradient rule for this operator" if is_passed else "no gradient rule, and none is needed here"
    name = node.name or next(iter(node.output), "")
    return NodeCoverage(name, node.op_type, has_rule, is_passed, reason, _multiply_adds(forward, node))


def _multiply_adds(forward: ForwardGraph, node: NodeProto) -> int:
    """float32 products that are added up: [.., m, k] x [.., k, n], and a kernel at every place of the output."""
    shapes = [forward.shapes.get(name, ()) for name in node.input]
    output = forward.shapes.get(node.output[0], ())
    if node.op_type == "MatMul" and shapes[0]:
        return math.prod(output) * shapes[0][-1]
    if node.op_type == "Gemm" and len(shapes[0]) == 2:
        transposed = any(each.name == "transA" and each.i for each in node.attribute)
        return math.prod(output) * shapes[0][0 if transposed else 1]
    if node.op_type == "Conv" and len(shapes[1]) > 1:
        return math.prod(output) * math.prod(shapes[1][1:])
    if node.op_type == "ConvTranspose" and len(shapes[1]) > 1:
        return math.prod(shapes[0]) * math.prod(shapes[1][1:])
    if node.op_type in ("LSTM", "GRU", "RNN") and len(shapes[0]) == 3:  # both weights, at each step of each row
        return shapes[0][0] * shapes[0][1] * (math.prod(shapes[1]) + math.prod(shapes[2]))
    if node.op_type == "Einsum":
        return _summed_products(next(each.s.decode() for each in node.attribute if each.name == "equation"), shapes)
    return 0


def _summed_products(equation: str, shapes: list[tuple[int, ...]]) -> int:
    """One for each combination of what the letters count; an equation with an ellipsis or of one factor counts as 0."""
    factors = equation.replace(" ", "").partition("->")[0].split(",")
    if len(factors) < 2 or [len(each) for each in factors] != [len(shape) for shape in shapes]:
        return 0
    sizes: dict[str, int] = {}
    for letters, shape in zip(factors, shapes, strict=True):
        sizes.update(zip(letters, shape, strict=True))
    return math.prod(sizes.values())
