"""Write the golden vectors of the update codecs: python tests/vectors/update/make_vectors.py

They are computed here element by element in plain Python from the format's definition, not with the product's code.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
BLOCK = 256


def int8_block256(values: list[float], uniforms: list[float]) -> bytes:
    scales = []
    levels = []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        largest = max(abs(v) for v in block)
        scale = np.float32(largest / 127)
        if float(scale) * 127 < largest:
            scale = np.nextafter(scale, np.float32(math.inf))
        scales.append(float(scale))
        for offset, value in enumerate(block):
            ratio = value / float(scale) if scale > 0 else 0.0
            levels.append(math.floor(ratio + uniforms[start + offset]))
    return struct.pack(f"<{len(scales)}f", *scales) + struct.pack(f"<{len(levels)}b", *levels)


def main() -> None:
    cases = []
    for name, count, size in (
        ("one", 1, 1.0),
        ("short_block", 5, 1e-3),
        ("two_blocks", 300, 0.02),
        ("tiny", 260, 1e-9),
    ):
        values = (np.random.default_rng(len(name)).standard_normal(count) * size).astype(np.float32)
        if name == "two_blocks":
            values[:256] = 0.0
        uniforms = np.random.Generator(np.random.PCG64(7)).random(count)
        encoded = int8_block256([float(v) for v in values], [float(u) for u in uniforms])
        cases.append(
            {
                "name": name,
                "seed": 7,
                "count": count,
                "values_hex": values.astype("<f4").tobytes().hex(),
                "int8_block256_hex": encoded.hex(),
            }
        )
    (HERE / "codecs.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
