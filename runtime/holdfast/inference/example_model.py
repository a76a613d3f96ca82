"""A small working model for people who have none: ten digits, told apart by the nearest of ten drawn templates.

Nothing is trained: the weights are the ten glyphs below, so the model knows clear, centred digits of about this shape,
and two in three of real handwriting (a test measures it). Written byte by byte: the base install has no onnx package.

Formula: argmin_k |x - t_k|^2 = argmax_k (x . t_k - |t_k|^2 / 2); the scores go through a softmax.
"""

from __future__ import annotations

import numpy as np

from holdfast.inference.onnx_wire import field_bytes, field_varint
from holdfast.inference.tensors import Array

SIDE = 8
FULL = 16.0  # pixel value of ink, as in scikit-learn's digits
TEMPERATURE = 256.0  # FULL^2: scores become numbers of pixels, which a softmax can tell apart

_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_ATTRIBUTE_INT = 2  # AttributeProto.AttributeType
_IR_VERSION, _OPSET = 8, 17

_GLYPHS = (
    "...##... ..####.. ..#..#.. .##..##. .##..##. ..#..#.. ..####.. ...##...",
    "....#... ...##... ..###... ....#... ....#... ....#... ....#... ..####..",
    "..###... .####... ...##... ...##... ...##... ..##.... ..#####. ..#####.",
    "..####.. ..#.##.. .....##. ...###.. ...####. .....##. ..#.##.. ..####..",
    "....#... ...##... ...#.... ..##.... .##.##.. .######. ....#... ....#...",
    "..#####. ..##.... ..#..... .####... ...###.. .....#.. ....##.. ..###...",
    "...##... ..##.... ..#..... .#####.. .##.###. .##..##. ..####.. ...##...",
    ".######. .######. ....##.. ...##... .######. ...##... ..##.... ..##....",
    "...###.. ..#..#.. ..#..#.. ..####.. ...##... ..#..#.. ..#..#.. ...###..",
    "...##... ..#..#.. ..#..##. ..#####. .....##. .....#.. ....##.. ..###...",
)


def digit_templates() -> Array:
    """float32[10, 64]: the glyphs, row-major 8 x 8, FULL where there is ink and 0 elsewhere."""
    rows = [[FULL if pixel == "#" else 0.0 for pixel in glyph if pixel != " "] for glyph in _GLYPHS]
    templates: Array = np.array(rows, dtype=np.float32)
    return templates


def digits_model() -> bytes:
    """An ONNX file: `pixels` float32[n, 64] in 0..16 -> `probabilities` float32[n, 10] and `digit` int64[n]."""
    templates = digit_templates().astype(np.float32)
    weights = np.ascontiguousarray(templates.T / TEMPERATURE, dtype="<f4")
    bias = (-(templates**2).sum(axis=1) / (2 * TEMPERATURE)).astype("<f4")
    nodes = [
        _node("Gemm", ["pixels", "weights", "bias"], "scores"),
        _node("Softmax", ["scores"], "probabilities", axis=1),
        _node("ArgMax", ["probabilities"], "digit", axis=1, keepdims=0),
    ]
    graph = b"".join(
        (
            *(field_bytes(1, node) for node in nodes),
            field_bytes(2, "digits"),
            field_bytes(5, _tensor("weights", weights)),
            field_bytes(5, _tensor("bias", bias)),
            field_bytes(11, _value("pixels", _FLOAT, ["n", SIDE * SIDE])),
            field_bytes(12, _value("probabilities", _FLOAT, ["n", len(_GLYPHS)])),
            field_bytes(12, _value("digit", _INT64, ["n"])),
        )
    )
    return b"".join(
        (
            field_varint(1, _IR_VERSION),
            field_bytes(2, "holdfast"),
            field_bytes(6, "Ten digits by the nearest of ten drawn 8 x 8 templates; not trained."),
            field_bytes(7, graph),
            field_bytes(8, field_bytes(1, "") + field_varint(2, _OPSET)),
        )
    )


def _node(operator: str, inputs: list[str], output: str, **attributes: int) -> bytes:
    parts = [field_bytes(1, name) for name in inputs]
    parts += (field_bytes(2, output), field_bytes(3, output), field_bytes(4, operator))
    for name, value in attributes.items():
        attribute = field_bytes(1, name) + field_varint(3, value) + field_varint(20, _ATTRIBUTE_INT)
        parts.append(field_bytes(5, attribute))
    return b"".join(parts)


def _tensor(name: str, array: Array) -> bytes:
    dims = b"".join(field_varint(1, size) for size in array.shape)
    return dims + field_varint(2, _FLOAT) + field_bytes(8, name) + field_bytes(9, array.tobytes())


def _value(name: str, element_type: int, shape: list[int | str]) -> bytes:
    dims = b""
    for size in shape:
        dims += field_bytes(1, field_bytes(2, size) if isinstance(size, str) else field_varint(1, size))
    tensor_type = field_varint(1, element_type) + field_bytes(2, dims)
    return field_bytes(1, name) + field_bytes(2, field_bytes(1, tensor_type))
