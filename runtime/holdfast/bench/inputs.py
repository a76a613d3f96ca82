"""Inputs for a model nobody gave inputs for, from its declared shapes and a seed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from holdfast.errors import ModelError
from holdfast.inference.tensors import BFLOAT16, BFLOAT16_NAME, STRING, Array, TensorSpec, shape_text

MAX_ELEMENTS = 2**28  # 1 GiB of float32; a declared shape beyond that is a mistake or a trap


def synthetic_inputs(specs: Sequence[TensorSpec], seed: int) -> dict[str, Array]:
    """One array per input, dynamic dimensions 1: floats standard normal, integers 0 or 1, text "a".

    Raises:
        ModelError: a declared shape is too large.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _array(spec, rng) for spec in specs}


def _array(spec: TensorSpec, rng: np.random.Generator) -> Array:
    shape = tuple(1 if size is None else size for size in spec.shape)
    if math.prod(shape) > MAX_ELEMENTS:
        raise ModelError(f"input '{spec.name}' of shape {shape_text(spec.shape)} is too large to make up values for")
    if spec.dtype == STRING:
        array = np.empty(shape, dtype=np.object_)
        array.fill(b"a")
        return array
    if spec.dtype == BFLOAT16_NAME:
        return np.zeros(shape, dtype=BFLOAT16)
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    return rng.integers(0, 2, shape).astype(spec.dtype)
