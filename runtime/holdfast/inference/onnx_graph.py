"""What a model computes, read from its bytes without the onnx package: nodes, constants, inputs, outputs.

Rules: nothing is run and nothing is guessed. What cannot be read for certain (values in external files, references to
the attributes of a function) is absent from the result, never a default. Field numbers: onnx.proto.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from holdfast.errors import ModelError
from holdfast.inference.onnx_wire import Message
from holdfast.inference.tensors import Array

MAX_NESTING = 32  # graphs within graphs; exporters stay below 5
MAX_VALUE_ELEMENTS = 4_096  # constants that say a shape, axes or a bound are small; weights are not read

_DTYPES = {1: "<f4", 2: "u1", 3: "i1", 4: "<u2", 5: "<i2", 6: "<i4", 7: "<i8", 9: "?", 10: "<f2", 11: "<f8"}
_FLOAT, _INT64, _EXTERNAL = 1, 7, 1


@dataclass(frozen=True, slots=True)
class Constant:
    """A tensor of the file. `value` is None where it was not read: large, external, or of a form not read here."""

    shape: tuple[int, ...]
    value: Array | None


@dataclass(frozen=True, slots=True)
class Node:
    """One operator call. `graphs` is how many graphs it holds; `is_plain` is False if an attribute is not readable."""

    domain: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    integers: Mapping[str, int] = field(default_factory=dict)
    lists: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    tensors: Mapping[str, Constant] = field(default_factory=dict)
    graphs: int = 0
    is_plain: bool = True


@dataclass(frozen=True, slots=True)
class Input:
    """A declared input. A dimension is its size, its name, or "" where it is neither."""

    name: str
    dims: tuple[int | str, ...] | None


@dataclass(frozen=True, slots=True)
class Graph:
    """The main graph of a model. `operators` also counts what nested graphs and functions call, with its domain."""

    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    constants: Mapping[str, Constant]
    opsets: Mapping[str, int]
    operators: frozenset[tuple[str, str]]
    has_functions: bool
    has_sparse: bool


def read_graph(model: bytes) -> Graph:
    """The main graph of an ONNX file.

    Raises:
        ModelError: the bytes are not a message that can be read for certain.
    """
    whole = Message(memoryview(model))
    graph = whole.merged(7)
    functions = whole.messages(25)
    tensors, opsets = graph.messages(5), whole.messages(8)
    constants = {each.text(8): _constant(each) for each in tensors}
    versions = {_domain(each.text(1)): each.integer(2) for each in opsets}
    if len(constants) != len(tensors) or len(versions) != len(opsets):
        raise ModelError("two initializers, or two operator sets, have the same name")
    called = set(_operators(graph, 0))
    for function in functions:
        called.update(operator for node in function.messages(7) for operator in _node_operators(node, 0))
    return Graph(
        inputs=tuple(each for each in map(_input, graph.messages(11)) if each.name not in constants),
        outputs=tuple(each.text(1) for each in graph.messages(12)),
        nodes=tuple(map(_node, graph.messages(1))),
        constants=constants,
        opsets=versions,
        operators=frozenset(called),
        has_functions=bool(functions),
        has_sparse=graph.has(15),
    )


def _operators(graph: Message, depth: int) -> Iterator[tuple[str, str]]:
    if depth > MAX_NESTING:
        raise ModelError(f"graphs are nested more than {MAX_NESTING} deep")
    for node in graph.messages(1):
        yield from _node_operators(node, depth)


def _node_operators(node: Message, depth: int) -> Iterator[tuple[str, str]]:
    yield _domain(node.text(7)), node.text(4)
    for attribute in node.messages(5):
        for nested in _graphs(attribute):
            yield from _operators(nested, depth + 1)


def _graphs(attribute: Message) -> list[Message]:
    single = [attribute.merged(6)] if attribute.has(6) else []
    return single + attribute.messages(11)


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _node(message: Message) -> Node:
    integers: dict[str, int] = {}
    lists: dict[str, tuple[int, ...]] = {}
    texts: dict[str, str] = {}
    tensors: dict[str, Constant] = {}
    graphs, is_plain = 0, True
    seen: set[str] = set()
    for attribute in message.messages(5):
        name, kind = attribute.text(1), attribute.integer(20)
        # an attribute given twice, or one that stands for a function's, means what the reader of it chooses
        is_plain = is_plain and name not in seen and not attribute.has(21) and kind != 0
        seen.add(name)
        graphs += len(_graphs(attribute))
        if kind == 2:
            integers[name] = attribute.integer(3)
        elif kind == 3:
            texts[name] = attribute.text(4)
        elif kind == 4:
            tensors[name] = _constant(attribute.merged(5))
        elif kind == 7:
            lists[name] = attribute.integers(8)
    return Node(
        _domain(message.text(7)),
        message.text(4),
        message.texts(1),
        message.texts(2),
        integers,
        lists,
        texts,
        tensors,
        graphs,
        is_plain,
    )


def _input(message: Message) -> Input:
    tensor = message.merged(2).merged(1)
    if not tensor.has(2):
        return Input(message.text(1), None)
    return Input(message.text(1), tuple(map(_dim, tensor.merged(2).messages(1))))


def _dim(message: Message) -> int | str:
    # a oneof: with both present the last counts, which is lost here; a name is the careful reading
    return message.integer(1) if message.has(1) and not message.has(2) else message.text(2)


def _constant(message: Message) -> Constant:
    shape = message.integers(1)
    if any(size < 0 for size in shape):
        raise ModelError(f"tensor '{message.text(8)}' declares a negative dimension")
    count = math.prod(shape)
    dtype = _DTYPES.get(message.integer(2))
    if dtype is None or count > MAX_VALUE_ELEMENTS or message.has(3):
        return Constant(shape, None)
    if message.integer(14) == _EXTERNAL or message.has(13):
        return Constant(shape, None)
    value = _value(message, dtype, count)
    return Constant(shape, None if value is None else value.reshape(shape))


def _value(message: Message, dtype: str, count: int) -> Array | None:
    forms = [number for number in (4, 5, 6, 7, 9, 10, 11) if message.has(number)]
    if forms == [9] and len(message.data(9)) == count * np.dtype(dtype).itemsize:
        return np.frombuffer(message.data(9), dtype=dtype)
    if forms == [7] and dtype == "<i8" and len(message.integers(7)) == count:
        return np.array(message.integers(7), dtype=np.int64)
    return np.zeros(0, dtype=dtype) if not forms and count == 0 else None
