"""Canaries: sample values that occur nowhere else, and a search for them in whatever left a device.

A value is looked for as the bytes of float32 and float64 (or int64) in both orders, as decimal text with five and
more digits, as hexadecimal text, and inside base64 at every alignment (runs of base64 are decoded and searched too).
Fewer digits, or a search in fragments of base64 text, would find accidents among signatures and hashes.
"""

from __future__ import annotations

import base64
import binascii
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

BASE64_RUN = re.compile(rb"[A-Za-z0-9+/_-]{8,}")
MIN_DIGITS, MAX_DIGITS = 5, 17


@dataclass(frozen=True)
class Canary:
    """A name for messages, and the value: a float (as float32 holds it) or an int."""

    name: str
    value: float | int

    def binary(self) -> dict[str, bytes]:
        """Its bytes, by encoding."""
        kinds = "dq" if isinstance(self.value, int) else "fd"
        packed = {f"{order}{kind}": struct.pack(order + kind, self.value) for kind in kinds for order in "<>"}
        return packed

    def texts(self) -> dict[str, bytes]:
        """Its bytes and digits as text, by encoding."""
        said = {"decimal": str(self.value).encode()} if isinstance(self.value, int) else {}
        if isinstance(self.value, float):
            for digits in range(MIN_DIGITS, MAX_DIGITS + 1):
                said[f"{digits} digits"] = f"{self.value:.{digits}g}".encode()
                said[f"{digits} digits, exponent"] = f"{self.value:.{digits - 1}e}".partition("e")[0].encode()
            said["float.hex"] = self.value.hex().encode()
        for kind, data in self.binary().items():
            said[f"hex of {kind}"] = data.hex().encode()
            said[f"HEX of {kind}"] = data.hex().upper().encode()
            said[f"escaped {kind}"] = repr(data)[2:-1].encode()
        return said


def find(data: bytes, canaries: tuple[Canary, ...]) -> list[str]:
    """Where canaries are in `data`: a line each; empty = clean."""
    found = []
    inside = b"\n".join(_decoded(data))
    for canary in canaries:
        for kind, trace in canary.binary().items():
            found += [f"{canary.name} as {kind}"] * (trace in data)
            found += [f"{canary.name} as {kind} in base64"] * (trace in inside)
        found += [f"{canary.name} as {kind}" for kind, trace in canary.texts().items() if trace in data]
        found += [f"{canary.name} as {kind} in base64" for kind, trace in canary.texts().items() if trace in inside]
    return found


def _decoded(data: bytes) -> Iterator[bytes]:
    """What runs of base64 hold, for each of the four places where a group may begin."""
    for match in BASE64_RUN.finditer(data):
        run = match.group().translate(bytes.maketrans(b"-_", b"+/"))
        for start in range(4):
            part = run[start:]
            try:
                yield base64.b64decode(part[: len(part) // 4 * 4])
            except binascii.Error:
                continue
