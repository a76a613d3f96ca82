"""Tensors as they cross the boundary below the fronts: a request, a response, and what a model declares.

Rules: a tensor is a C-contiguous numpy array; strings travel as object arrays of `bytes` (dtype name "string").
These types know neither a wire format nor ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]

STRING = "string"  # dtype name of object arrays whose elements are bytes
BFLOAT16_NAME = "bfloat16"
BFLOAT16 = np.dtype([(BFLOAT16_NAME, "<u2")])  # numpy has no such number: a record of its two bytes, see bfloat16.py
DTYPE_NAMES = (
    "bool",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "int8",
    "int16",
    "int32",
    "int64",
    BFLOAT16_NAME,
    "float16",
    "float32",
    "float64",
    STRING,
)
MAX_RANK = 64  # numpy's own ceiling


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a model declares of one input or output. `shape` has None where a dimension is dynamic."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of `shape` fits: same rank, and every fixed dimension equal."""
        if len(shape) != len(self.shape):
            return False
        # a loop, because `all` with a generator costs 0.5 us more, on every tensor of every request
        for want, have in zip(self.shape, shape, strict=True):  # noqa: SIM110
            if want is not None and want != have:
                return False
        return True


@dataclass(slots=True)  # not frozen: that costs 1 us in every request; nobody changes one
class TensorRequest:
    """One inference request. Empty `version` = the one being served; empty `outputs` = all of them."""

    model: str
    version: str
    request_id: str
    inputs: Mapping[str, Array]
    outputs: tuple[str, ...] = ()


@dataclass(slots=True)  # not frozen: that costs 1 us in every request; nobody changes one
class TensorResponse:
    """The answer to one request: outputs in the order they were asked for. `labels`: of the model's classes."""

    model: str
    version: str
    request_id: str
    outputs: Mapping[str, Array]
    labels: tuple[str, ...] = ()


def dtype_name(array: Array) -> str:
    """The dtype name of an array: "string" for object arrays, "bfloat16" for such records, else numpy's name."""
    if array.dtype == np.object_:
        return STRING
    return BFLOAT16_NAME if array.dtype == BFLOAT16 else array.dtype.name


def numpy_dtype(name: str) -> np.dtype[np.generic]:
    """The dtype of arrays with this dtype name."""
    if name == BFLOAT16_NAME:
        return BFLOAT16
    return np.dtype(object if name == STRING else name)


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape for people: `[?, 64]`, where `?` may be any size."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"
