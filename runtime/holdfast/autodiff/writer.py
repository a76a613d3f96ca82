"""Collects the nodes and constants of a graph that is being emitted, and gives every new value a name of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from holdfast.errors import AutodiffError

Attribute = int | float | str | Sequence[int]


class GraphWriter:
    """Appends nodes in execution order. Not thread-safe; used once per emitted graph."""

    def __init__(self, taken: Iterable[str]) -> None:
        self._taken = set(taken)
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
        names = [self._fresh(operator) for _ in range(outputs)]
        node = helper.make_node(operator, list(inputs), names, name=names[0])
        node.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
        self.nodes.append(node)
        return names

    def name_output(self, value: str, name: str) -> None:
        """Give `value` the contract's name as well (an Identity, which the runtime removes)."""
        self.reserve(name)
        self.nodes.append(helper.make_node("Identity", [value], [name], name=name))

    def constant(self, values: NDArray[np.generic]) -> str:
        """An initializer with these values; equal constants are written once (they are never trained)."""
        key = (values.dtype.str, values.shape, values.tobytes())
        if key not in self._constants:
            name = self._fresh("constant")
            self._constants[key] = name
            self.constants[name] = values
        return self._constants[key]

    def integers(self, *values: int) -> str:
        """An int64[n] constant: axes and shapes."""
        return self.constant(np.array(values, dtype=np.int64))

    def scalar(self, value: float) -> str:
        """A float32[] constant."""
        return self.constant(np.array(value, dtype=np.float32))

    def initializers(self) -> list[TensorProto]:
        """The constants as tensors, for the graph's initializer list."""
        return [numpy_helper.from_array(values, name) for name, values in self.constants.items()]

    def _fresh(self, operator: str) -> str:
        index = len(self._taken)
        while (name := f"holdfast/{operator}_{index}") in self._taken:
            index += 1
        self._taken.add(name)
        return name
