"""bfloat16 tensors, which numpy has no type for: the two bytes of each element go to ONNX Runtime and back as they are.

An array of them has the dtype `tensors.BFLOAT16`, a record of one 16-bit number, so that nobody takes it for integers.
"""

from __future__ import annotations

import ctypes
import math

import numpy as np
import onnxruntime

from holdfast.inference.tensors import BFLOAT16, Array

ONNX_TYPE = 16  # TensorProto.BFLOAT16


def to_value(array: Array) -> onnxruntime.OrtValue:
    """A tensor as ONNX Runtime holds it: a view of the array, which must outlive it. Any dtype but strings."""
    if array.dtype == BFLOAT16:
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(array.view(np.uint16), ONNX_TYPE)
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def from_value(value: onnxruntime.OrtValue) -> Array:
    """A new array with the elements of a tensor."""
    if value.element_type() != ONNX_TYPE:
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    count = math.prod(shape)
    if not count:
        return np.empty(shape, dtype=BFLOAT16)
    raw = (ctypes.c_char * (count * BFLOAT16.itemsize)).from_address(value.data_ptr())
    return np.frombuffer(raw, dtype=BFLOAT16).reshape(shape).copy()
