"""`golden.npz`: inputs with the outputs the author got for them, and how far another machine may be off.

An npz of plain arrays (never pickled): `in/<input>`, `out/<output>`, and `tolerance` = float64[rtol, atol]. A device
compares |got - expected| <= atol + rtol * |expected|. Strings lie in the file as numpy text and are handed out as the
runtime takes them, as objects of bytes. The same arrays give the same bytes.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from holdfast.errors import BundleError

MAX_GOLDEN_BYTES = 67_108_864  # 64 MiB unpacked: a few requests, not a data set
DEFAULT_RTOL = 1e-3  # float32 kernels of two processors differ by less
DEFAULT_ATOL = 1e-4

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """Golden inputs and outputs by tensor name, batch axis first. Strings are object arrays of bytes."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rtol: float = DEFAULT_RTOL
    atol: float = DEFAULT_ATOL


def write_golden(golden: GoldenSet) -> bytes:
    """The bytes of `golden.npz`."""
    arrays: dict[str, Array] = {f"in/{name}": _to_file(golden.inputs[name]) for name in sorted(golden.inputs)}
    arrays |= {f"out/{name}": _to_file(golden.outputs[name]) for name in sorted(golden.outputs)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays, tolerance=np.array([golden.rtol, golden.atol], dtype=np.float64))
    return buffer.getvalue()


def read_golden(data: bytes) -> GoldenSet:
    """Read `golden.npz`.

    Raises:
        BundleError: not such an npz, larger than MAX_GOLDEN_BYTES when unpacked, or holding anything else.
    """
    inputs: dict[str, Array] = {}
    outputs: dict[str, Array] = {}
    tolerance: list[float] = []
    for name, array in _arrays(data).items():
        if name.startswith("in/"):
            inputs[name.removeprefix("in/")] = array
        elif name.startswith("out/"):
            outputs[name.removeprefix("out/")] = array
        elif name == "tolerance" and array.dtype == np.float64 and array.shape == (2,):
            tolerance = [float(value) for value in array.tolist()]
        else:
            raise BundleError(f"golden.npz holds {name[:100]!r}; expected in/NAME, out/NAME and tolerance only")
    if not inputs or not outputs or len(tolerance) != 2 or not all(0 <= value < 1 for value in tolerance):
        raise BundleError("golden.npz must hold inputs, outputs and a tolerance of two numbers from 0 to 1")
    return GoldenSet(inputs, outputs, tolerance[0], tolerance[1])


def _arrays(data: bytes) -> dict[str, Array]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            # the declared sizes are what zipfile enforces while it unpacks
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > MAX_GOLDEN_BYTES:
            raise BundleError(f"golden.npz unpacks to {unpacked} bytes, at most {MAX_GOLDEN_BYTES} are read")
        with np.load(io.BytesIO(data), allow_pickle=False) as archive_of_arrays:
            return {name: _from_file(np.asarray(archive_of_arrays[name])) for name in archive_of_arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise BundleError(f"golden.npz is not an npz of plain arrays: {str(error)[:100]}") from error


def _to_file(array: Array) -> Array:
    if array.dtype != np.object_:
        return array
    texts: Array = np.array([bytes(item).decode("utf-8") for item in array.ravel().tolist()], dtype=np.str_)
    return texts.reshape(array.shape)


def _from_file(array: Array) -> Array:
    if array.dtype.kind != "U":
        return array
    items = np.empty(array.size, dtype=np.object_)
    items[:] = [str(text).encode() for text in array.ravel().tolist()]
    return items.reshape(array.shape)
