"""Datatypes of the Open Inference Protocol, and the bytes of one tensor.

Rules: row-major, little-endian; a BYTES element is its length in four bytes, then itself; lengths are checked against
the shape before anything is allocated. BF16 elements have no form but their bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence

import numpy as np

from holdfast.errors import InvalidTensorError
from holdfast.inference.tensors import BFLOAT16_NAME, MAX_RANK, STRING, Array, dtype_name, numpy_dtype

DTYPE_OF = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": STRING,
}
BF16 = "BF16"  # beside the table: its elements have no form but their bytes
DATATYPE_OF = {**{dtype: datatype for datatype, dtype in DTYPE_OF.items()}, BFLOAT16_NAME: BF16}
MAX_ELEMENTS = 2**40  # far above any message bound; keeps products of hostile dimensions small

# numpy spells a dtype's name anew each time, which takes 4 us
_DATATYPE_OF_DTYPE = {numpy_dtype(dtype): datatype for dtype, datatype in DATATYPE_OF.items()}
_LENGTH = struct.Struct("<I")


def dtype_of(tensor: str, datatype: str) -> str:
    """The dtype name of a protocol datatype.

    Raises:
        InvalidTensorError: not one of the protocol's datatypes.
    """
    if datatype in DTYPE_OF:
        return DTYPE_OF[datatype]
    if datatype == BF16:
        return BFLOAT16_NAME
    raise InvalidTensorError(f"input '{tensor}': unknown datatype '{datatype[:20]}'; known: {', '.join(DTYPE_OF)}")


def datatype_of(array: Array) -> str:
    """The protocol datatype of an array."""
    return _DATATYPE_OF_DTYPE.get(array.dtype) or DATATYPE_OF[dtype_name(array)]


def checked_shape(tensor: str, shape: Sequence[int]) -> tuple[int, ...]:
    """The shape as a tuple, if an array of it could exist.

    Raises:
        InvalidTensorError: a negative size, too many dimensions or too many elements.
    """
    sizes = tuple(shape)
    if len(sizes) > MAX_RANK:
        raise InvalidTensorError(f"input '{tensor}': expected at most {MAX_RANK} dimensions, got {len(sizes)}")
    if any(size < 0 for size in sizes):
        raise InvalidTensorError(f"input '{tensor}': a size below zero in shape {list(sizes)}")
    if math.prod(max(size, 1) for size in sizes) > MAX_ELEMENTS:
        raise InvalidTensorError(f"input '{tensor}': more than {MAX_ELEMENTS} elements in shape {list(sizes)}")
    return sizes


def from_raw(tensor: str, datatype: str, shape: Sequence[int], raw: bytes | memoryview) -> Array:
    """One tensor from its raw bytes. A view of `raw`, not a copy, except for BYTES and unaligned memory.

    Raises:
        InvalidTensorError: unknown datatype, impossible shape, or another length than they demand.
    """
    dtype = dtype_of(tensor, datatype)
    sizes = checked_shape(tensor, shape)
    count = math.prod(sizes)
    if dtype == STRING:
        return _strings_from_raw(tensor, sizes, count, raw)
    native = numpy_dtype(dtype)
    kind = native.newbyteorder("<")
    if len(raw) != count * kind.itemsize:
        raise InvalidTensorError(
            f"input '{tensor}': expected {count * kind.itemsize} bytes for {datatype}{list(sizes)}, got {len(raw)}"
        )
    flat: Array = np.frombuffer(raw, dtype=kind)
    if dtype == "bool" and len(raw) and flat.view(np.uint8).max() > 1:
        raise InvalidTensorError(f"input '{tensor}': a BOOL byte is neither 0 nor 1")
    return np.require(flat, dtype=native, requirements=["A"]).reshape(sizes)


def to_raw(array: Array) -> bytes:
    """The raw bytes of one tensor."""
    if array.dtype != np.object_:
        return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        parts += (_LENGTH.pack(len(item)), item)
    return b"".join(parts)


def from_elements(tensor: str, datatype: str, shape: Sequence[int], elements: Sequence[object]) -> Array:
    """One tensor from its elements in row-major order.

    Raises:
        InvalidTensorError: unknown datatype, another number of elements than the shape's, or one of the wrong kind.
    """
    dtype = dtype_of(tensor, datatype)
    if datatype == BF16:
        raise InvalidTensorError(f"input '{tensor}': BF16 has no JSON form; send it as binary data")
    sizes = checked_shape(tensor, shape)
    count = math.prod(sizes)
    if len(elements) != count:
        raise InvalidTensorError(
            f"input '{tensor}': expected {count} elements for shape {list(sizes)}, got {len(elements)}"
        )
    if dtype == STRING:
        return object_array([_as_bytes(tensor, item) for item in elements], sizes)
    _require_kinds(tensor, datatype, elements)
    try:
        with np.errstate(over="raise"):
            return np.array(elements, dtype=dtype).reshape(sizes)
    except (OverflowError, FloatingPointError) as error:
        raise InvalidTensorError(f"input '{tensor}': a number is outside the range of {datatype}") from error


def object_array(items: Sequence[bytes], shape: tuple[int, ...]) -> Array:
    """An object array of bytes."""
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)


def _strings_from_raw(tensor: str, sizes: tuple[int, ...], count: int, raw: bytes | memoryview) -> Array:
    if count * _LENGTH.size > len(raw):
        raise InvalidTensorError(
            f"input '{tensor}': expected at least {count * _LENGTH.size} bytes for BYTES{list(sizes)}, got {len(raw)}"
        )
    items: list[bytes] = []
    at = 0
    while at < len(raw) and len(items) < count:
        if at + _LENGTH.size > len(raw):
            break
        (size,) = _LENGTH.unpack_from(raw, at)
        at += _LENGTH.size
        if size > len(raw) - at:
            raise InvalidTensorError(
                f"input '{tensor}': element {len(items)} declares {size} bytes, {len(raw) - at} are left"
            )
        items.append(bytes(raw[at : at + size]))
        at += size
    if len(items) != count or at != len(raw):
        raise InvalidTensorError(
            f"input '{tensor}': expected {count} BYTES elements, got {len(items)} and {len(raw) - at} bytes more"
        )
    return object_array(items, sizes)


def _as_bytes(tensor: str, item: object) -> bytes:
    if isinstance(item, bytes):
        return item
    if isinstance(item, str):
        try:
            return item.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidTensorError(f"input '{tensor}': a text element is not valid Unicode") from error
    raise InvalidTensorError(f"input '{tensor}': expected text elements, got {type(item).__name__}")


def _require_kinds(tensor: str, datatype: str, elements: Sequence[object]) -> None:
    """Refuse what numpy would silently convert: 1.5 for an integer, 2 for a bool, "1" for a number."""
    allowed: frozenset[type] = frozenset({int, float})
    if datatype == "BOOL":
        allowed = frozenset({bool})
    elif not datatype.startswith("FP"):
        allowed = frozenset({int})
    wrong = set(map(type, elements)) - allowed
    if wrong:
        names = ", ".join(sorted(kind.__name__ for kind in wrong))
        raise InvalidTensorError(f"input '{tensor}': elements of {datatype} cannot be {names}")
