"""Bodies as they are gathered: small ones as they come, large ones in a place of their own."""

from __future__ import annotations

import numpy as np
import pytest

from holdfast.serving.buffers import ALIGNMENT
from holdfast.serving.grpc_wire import GrpcFault, framed_prefix
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.shapes import RequestHead, Shape
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.budget import Budget
from holdfast.serving.native.gather import PLACE_BYTES, Gather

Body = bytes | bytearray | memoryview
WINDOW = Http2Limits().stream_window_bytes
RAW_AT = 41  # where the tensor of these messages begins


class Gathered:
    """A stream, and the body it ended with."""

    def __init__(self) -> None:
        self.bodies: list[Body] = []
        self.budget = Budget(1 << 24)
        self.stream = Stream(
            1, (Shape(RequestHead("POST", "http", "x", "/", {}, None, 0), b"", []), ()), WINDOW, WINDOW
        )
        self.gather = Gather(
            Http2Connection(Http2Limits(), 0.0), self.stream, self.budget, 1 << 23, self.bodies.append,
            is_grpc=True, now_s=0.0, align=lambda head, size: RAW_AT,
        )  # fmt: skip


def message(size: int) -> bytes:
    """A framed message of `size` octets in all."""
    return framed_prefix(size - 5) + np.random.default_rng(1).bytes(size - 5)


@pytest.mark.parametrize("size", [PLACE_BYTES + 1, WINDOW, WINDOW + 1, 1 << 20])
def test_large_message_lies_where_its_tensor_is_aligned(size: int) -> None:
    gathered, body = Gathered(), message(size)

    for at in range(0, size, 30_000):
        gathered.gather.data(memoryview(body)[at : at + 30_000])
    place = gathered.stream.place
    gathered.gather.ended()

    assert place is not None
    assert bytes(gathered.bodies[0]) == body
    address = np.frombuffer(gathered.bodies[0], dtype=np.uint8).ctypes.data
    assert (address + RAW_AT) % ALIGNMENT == 0
    assert gathered.stream.place is None


def test_small_message_has_no_place() -> None:
    gathered = Gathered()

    gathered.gather.data(message(PLACE_BYTES))
    gathered.gather.ended()

    assert gathered.budget.buffers.kept_bytes == 0
    assert bytes(gathered.bodies[0]) == message(PLACE_BYTES)


def test_message_that_ends_early_shows_nothing_of_the_one_before() -> None:
    first, second = Gathered(), Gathered()
    second.budget.buffers = first.budget.buffers
    first.gather.data(message(PLACE_BYTES + 1))
    first.gather.ended()
    first.bodies.clear()

    second.gather.data(message(PLACE_BYTES + 1)[:1_000])
    second.gather.ended()

    assert bytes(second.bodies[0]) == message(PLACE_BYTES + 1)[:1_000]


def test_message_longer_than_announced_is_refused() -> None:
    gathered = Gathered()
    gathered.gather.data(message(PLACE_BYTES + 1))

    with pytest.raises(GrpcFault, match="another number of octets than it announced"):
        gathered.gather.data(b"x")
