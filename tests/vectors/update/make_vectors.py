"""Write the golden vectors of the update codecs: python tests/vectors/update/make_vectors.py

They are computed here element by element in plain Python from the format's definition, not with the product's code.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SEED = 7  # of the uniforms that stochastic codecs draw, one per value


def block_levels(values: list[float], uniforms: list[float], block: int, top: int) -> tuple[bytes, list[int]]:
    scales = []
    levels = []
    for start in range(0, len(values), block):
        part = values[start : start + block]
        largest = max(abs(v) for v in part)
        scale = np.float32(largest / top)
        if float(scale) * top < largest:
            scale = np.nextafter(scale, np.float32(math.inf))
        scales.append(float(scale))
        for offset, value in enumerate(part):
            ratio = value / float(scale) if scale > 0 else 0.0
            levels.append(math.floor(ratio + uniforms[start + offset]))
    return struct.pack(f"<{len(scales)}f", *scales), levels


def int8_block256(values: list[float], uniforms: list[float]) -> bytes:
    scales, levels = block_levels(values, uniforms, 256, 127)
    return scales + struct.pack(f"<{len(levels)}b", *levels)


def int4_block64(values: list[float], uniforms: list[float]) -> bytes:
    scales, levels = block_levels(values, uniforms, 64, 7)
    halves = [level % 16 for level in levels] + [0] * (len(levels) % 2)
    return scales + bytes(low + 16 * high for low, high in zip(halves[::2], halves[1::2], strict=True))


def float32(values: list[float], uniforms: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def float16(values: list[float], uniforms: list[float]) -> bytes:
    largest = max(abs(v) for v in values)
    exponent = 0
    if largest > 0:
        exponent = -200
        while largest / 2.0**exponent >= 2**15:
            exponent += 1
    return struct.pack("<h", exponent) + struct.pack(f"<{len(values)}e", *(v / 2.0**exponent for v in values))


def top_k(share: int) -> Callable[[list[float], list[float]], bytes]:
    def encode(values: list[float], uniforms: list[float]) -> bytes:
        kept = math.ceil(len(values) / share)
        chosen = sorted(sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:kept])
        if math.ceil(len(values) / 8) <= 4 * kept:
            bitmap = bytearray(math.ceil(len(values) / 8))
            for i in chosen:
                bitmap[i // 8] |= 1 << (i % 8)
            positions = bytes(bitmap)
        else:
            positions = struct.pack(f"<{kept}I", *chosen)
        return positions + struct.pack(f"<{kept}f", *(values[i] for i in chosen))

    return encode


def fixed_point(values: list[float], uniforms: list[float]) -> bytes:
    return struct.pack(f"<{len(values)}i", *(round(v * 2**20) for v in values))  # round() takes ties to even


ENCODERS = {
    "float32": float32,
    "float16": float16,
    "int8-block256-stochastic": int8_block256,
    "int4-block64-stochastic": int4_block64,
    "topk10-float32": top_k(10),
    "topk1-float32": top_k(100),
    "fixed32-2p20": fixed_point,
}


def main() -> None:
    cases = []
    for name, count, size in (
        ("one", 1, 1.0),
        ("short_block", 5, 1e-3),
        ("two_blocks", 300, 0.02),
        ("tiny", 260, 1e-9),
        ("zeros", 67, 0.0),
    ):
        values = (np.random.default_rng(len(name)).standard_normal(count) * size).astype(np.float32)
        if name == "two_blocks":
            values[:256] = 0.0
        uniforms = [float(u) for u in np.random.Generator(np.random.PCG64(SEED)).random(count)]
        plain = [float(v) for v in values]
        cases.append(
            {
                "name": name,
                "seed": SEED,
                "count": count,
                "values_hex": values.astype("<f4").tobytes().hex(),
                "encoded_hex": {
                    codec: encode(plain, uniforms).hex()
                    for codec, encode in ENCODERS.items()
                    if codec != "fixed32-2p20" or max(map(abs, plain)) < 2  # its range
                },
            }
        )
    (HERE / "codecs.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
