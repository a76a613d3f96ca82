"""Frames that keep us busy for nothing: a busy client is no flood, a flood is told so and ends its connection."""

from __future__ import annotations

import pytest
from tests.fakes.http2_server import EMPTY_SETTINGS, OPEN, SMALL, answer, error_of, opened

from holdfast.serving.http2 import frames
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import frame
from holdfast.serving.http2.limits import Http2Limits, PingRules, Rate

FLOODS = {
    "rapid_reset": lambda n: frame(1, 5, 2 * n + 1, SMALL) + frame(3, 0, 2 * n + 1, b"\0\0\0\x08"),
    "ping_acknowledgements": lambda n: frame(6, 1, 0, bytes(8)),
    "settings": lambda n: EMPTY_SETTINGS,
    "settings_ack": lambda n: frames.SETTINGS_ACK,
    "empty_data": lambda n: (OPEN if n == 0 else b"") + frame(0, 0, 1),
    "priority": lambda n: frame(2, 0, 1, b"12345"),
    "window_update": lambda n: frame(8, 0, 0, b"\0\0\0\1"),
    "unknown_type": lambda n: frame(0xBE, 0, 0, b""),
    "goaway": lambda n: frame(7, 0, 0, bytes(8)),
    "malformed_heads": lambda n: frame(1, 5, 2 * n + 1, b"\x83"),
    "streams_above_bound": lambda n: frame(1, 4, 2 * n + 1, SMALL),
}


@pytest.mark.parametrize("flood", sorted(FLOODS))
def test_flood_is_told_to_calm_down(flood: str) -> None:
    server = opened()

    count = 0
    while not server.is_ended:
        server.receive(FLOODS[flood](count), 0.0)
        count += 1
        assert count < 2_500

    assert count > 100  # a busy client is no flood
    assert error_of(server) is ErrorCode.ENHANCE_YOUR_CALM


def test_slow_pings_are_no_flood() -> None:
    server = opened(Http2Limits(pings=PingRules(max_strikes=0)))

    for second in range(5_000):
        server.receive(frame(6, 0, 0, bytes(8)), float(second))

    assert not server.is_ended


def test_pings_beside_requests_are_no_flood() -> None:
    server = opened(Http2Limits(controls=Rate(5, 0)))

    for number in range(1_000):
        ((_, stream, _),) = server.receive(frame(6, 0, 0, bytes(8)) + frame(1, 5, 2 * number + 1, SMALL), 0.0)
        answer(server, stream, b"")

    assert not server.is_ended
