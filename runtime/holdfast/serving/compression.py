"""Content codings of HTTP answers: gzip and deflate, where the client asks for one. Pure.

Source: RFC 9110 8.4 and 12.5.3; "deflate" is the zlib format (RFC 1950). Requests are expanded by `http1.py`.
"""

from __future__ import annotations

import zlib

MIN_BYTES = 1_024  # below that a coding saves less than its own header and the time it takes
LEVEL = 1  # tensors hardly shrink at any level; the first costs least
GZIP, DEFLATE = "gzip", "deflate"
MAX_OFFERS = 16  # of an Accept-Encoding header; browsers send five

_WINDOW = {GZIP: zlib.MAX_WBITS | 16, DEFLATE: zlib.MAX_WBITS}


def accepted(header: str) -> str:
    """The coding of ours that an `Accept-Encoding` header asks for; empty if none."""
    offers: dict[str, float] = {}
    for part in header.lower().split(",")[:MAX_OFFERS]:
        name, _, weight = part.partition(";")
        offers[name.strip()] = _quality(weight.strip())
    best = max(_WINDOW, key=lambda coding: offers.get(coding, 0.0))
    return best if offers.get(best, 0.0) > 0.0 else ""


def compress(body: bytes, coding: str) -> bytes:
    """The body in one of our codings."""
    compressor = zlib.compressobj(LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return compressor.compress(body) + compressor.flush()


def _quality(weight: str) -> float:
    if not weight.startswith("q="):
        return 1.0
    try:
        return float(weight[2:])
    except ValueError:
        return 0.0
