"""Splits a model into a small skeleton and one flat file of weights, and joins them again.

In the skeleton every parameter is a reference to external data: location `weights.bin`, offset and length from the flat
layout. The runtime fills it from memory with
`SessionOptions.add_external_initializers_from_files_in_memory(["weights.bin"], [weights], [len(weights)])`, so new
weights never need a protobuf to be rewritten on a device. Scalars and integer constants stay in the skeleton.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from holdfast.autodiff.reading import array_of, parameters_of, parse_model
from holdfast.errors import AutodiffError
from holdfast.update.layout import FlatLayout

WEIGHTS_LOCATION = "weights.bin"


class SplitModel(NamedTuple):
    """`skeleton`: an ONNX model without its parameters. `weights`: little-endian float32 as `layout` says."""

    skeleton: bytes
    weights: bytes
    layout: FlatLayout


def split_weights(model_bytes: bytes, *, layout: FlatLayout | None = None) -> SplitModel:
    """Take the parameters out of a self-contained model; everything else stays as it is, byte for byte in meaning.

    Args:
        layout: a table that was made for this model (it says which parameters learn); None: all of them do.

    Raises: AutodiffError: not a valid model, or the layout is of another one.
    """
    model = parse_model(model_bytes)
    arrays = {t.name: array_of(t) for t in parameters_of(model)}
    if layout is None:
        layout = FlatLayout.from_shapes((name, array.shape) for name, array in arrays.items())
    expected = [(entry.name, entry.shape) for entry in layout.entries]
    if expected != [(name, array.shape) for name, array in arrays.items()]:
        raise AutodiffError("the layout is not that of this model: other parameters, shapes or order")
    weights = layout.pack(arrays)
    refer_to_weights(model, layout)
    return SplitModel(model.SerializeToString(deterministic=True), weights.tobytes(), layout)


def join_weights(skeleton: bytes, weights: bytes, layout: FlatLayout) -> bytes:
    """The inverse of `split_weights`: a self-contained model with these weights.

    Raises: AutodiffError: the skeleton refers to what is not in the layout. FormatError: weights of wrong size.
    """
    tensors = layout.unpack(layout.weights_from_bytes(weights))
    model = onnx.load_model_from_string(skeleton)
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        if tensor.name not in tensors or tensors[tensor.name].shape != tuple(tensor.dims):
            raise AutodiffError(f"initializer {tensor.name!r} is not in the layout with shape {list(tensor.dims)}")
        tensor.CopyFrom(numpy_helper.from_array(np.asarray(tensors[tensor.name]), tensor.name))
    return model.SerializeToString(deterministic=True)


def refer_to_weights(model: onnx.ModelProto, layout: FlatLayout) -> None:
    """Turn each initializer that is in the layout into a reference to the weights file, in place."""
    entries = {entry.name: entry for entry in layout.entries}
    for tensor in model.graph.initializer:
        entry = entries.get(tensor.name)
        if entry is None:
            continue
        reference = TensorProto(name=tensor.name, data_type=TensorProto.FLOAT, dims=entry.shape)
        reference.data_location = TensorProto.EXTERNAL
        fields = {"location": WEIGHTS_LOCATION, "offset": str(entry.offset_bytes), "length": str(entry.size_bytes)}
        for key, value in fields.items():
            reference.external_data.add(key=key, value=value)
        tensor.CopyFrom(reference)
