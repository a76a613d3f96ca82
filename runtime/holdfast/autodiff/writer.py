"""Collects the nodes and constants of a graph that is being emitted, and gives every new value a name of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from holdfast.errors import AutodiffError

Attribute = int | float | str | Sequence[int]
_Key = tuple[str, tuple[str, ...], int, str]


class GraphWriter:
    """Appends nodes in execution order. Not thread-safe; used once per emitted graph.

    A node that was emitted before with the same operator, inputs and attributes is not emitted again: its outputs are
    reused. Every operator emitted here is a pure function of its inputs.

    `noise` collects inputs that the trainer fills with random numbers, `updates` the new values of running state.
    """

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
        self._emitted: dict[_Key, list[str]] = {}
        self.noise: dict[str, tuple[int, ...]] = {}
        self.updates: dict[str, str] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, NDArray[np.generic]] = {}

    def copy(self, nodes: Iterable[NodeProto]) -> None:
        """Append forward nodes as they are; their output names are taken already."""
        self.nodes.extend(nodes)

    def reserve(self, name: str) -> str:
        """Claim a name of the contract. Raises: AutodiffError: the model uses it for something else."""
        if name in self._taken:
            raise AutodiffError(f"the model has a value called {name!r}, which the training graphs need; rename it")
        self._taken.add(name)
        return name

    def node(self, operator: str, inputs: Sequence[str], **attributes: Attribute) -> str:
        """Append a node with one output; returns the output's name."""
        return self.nodes_out(operator, inputs, 1, **attributes)[0]

    def nodes_out(self, operator: str, inputs: Sequence[str], outputs: int, **attributes: Attribute) -> list[str]:
        """Append a node with several outputs; returns their names."""
        key = (operator, tuple(inputs), outputs, repr(sorted(attributes.items())))
        if key not in self._emitted:
            names = [self.fresh(operator) for _ in range(outputs)]
            self.node_as(operator, inputs, names, **attributes)
            self._emitted[key] = names
        return list(self._emitted[key])

    def node_as(self, operator: str, inputs: Sequence[str], names: Sequence[str], **attributes: Attribute) -> None:
        """Append a node whose outputs have names already: those of the forward node that it stands for."""
        node = helper.make_node(operator, list(inputs), list(names), name=next(name for name in names if name))
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)

    def maker(self, value: str) -> NodeProto | None:
        """The node that makes a value; None for an input or constant."""
        return next((node for node in reversed(self.nodes) if value in node.output), None)

    def make_noise(self, name: str, shape: tuple[int, ...]) -> str:
        """Declare an input of the contract: float32 of `shape`, uniform in [0, 1), fresh at every step."""
        self.reserve(name)
        self.noise[name] = shape
        return name

    def name_output(self, value: str, name: str) -> None:
        """Give `value` the contract's name as well (an Identity, which the runtime removes)."""
        self.reserve(name)
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def constant(self, values: NDArray[np.generic]) -> str:
        """An initializer with these values; equal constants are written once (they are never trained)."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            name = self.fresh("constant")
            self._constants[key] = name
            self.constants[name] = values
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """An int64[n] constant: axes and shapes."""
        return self.constant(np.array(values, dtype=np.int64))

    def integer(self, value: int) -> str:
        """An int64[] constant."""
        return self.constant(np.array(value, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A float32[] constant."""
        return self.constant(np.array(value, dtype=np.float32))

    def initializers(self) -> list[TensorProto]:
        """The constants as tensors, for the graph's initializer list."""
        return [numpy_helper.from_array(values, name) for name, values in self.constants.items()]

    def prune(self, wanted: Collection[str]) -> None:
        """Drop the nodes and constants that lead to nothing wanted (a gradient that nobody asked for)."""
        needed = set(wanted)
        kept = []
        for node in reversed(self.nodes):
            if not needed.isdisjoint(node.output):
                kept.append(node)
                needed.update(names_read(node))
        self.nodes = kept[::-1]
        self.constants = {name: values for name, values in self.constants.items() if name in needed}

    def fresh(self, operator: str) -> str:
        """A name that no value has yet."""
        index = len(self._taken)
        while (name := f"holdfast/{operator}_{index}") in self._taken:
            index += 1
        self._taken.add(name)
        return name


def names_read(node: NodeProto) -> set[str]:
    """The values a node reads, those included that the bodies of If, Loop and Scan take from outside."""
    names = {name for name in node.input if name}
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            for inner in body.node:
                names.update(names_read(inner))
    return names
