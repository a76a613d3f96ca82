"""How often a client may PING with nothing of ours between, as with gRPC's own servers (gRFC A8); no time passes."""

from __future__ import annotations

import contextlib

import pytest
from tests.fakes import served_models as models
from tests.fakes.http2_client import Http2Client
from tests.fakes.http2_server import OPEN, SMALL, answer, error_of, opened, sent
from tests.fakes.serving import pool_of, running

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import frame
from holdfast.serving.http2.limits import Http2Limits, PingRules
from holdfast.serving.server import Address, Front, ServerOptions

PING = frames.ping(b"12345678", ack=False)
CALM = ErrorCode.ENHANCE_YOUR_CALM
HOUR_S = 3_600.0


def pings_until_the_end(server: Http2Connection, every_s: float, most: int = 50) -> int:
    """How many PINGs were taken before one ended the connection; `most` if none did."""
    for count in range(most):
        server.receive(PING, every_s * count)
        if server.is_ended:
            return count
    return most


@pytest.mark.parametrize(
    ("first", "every_s", "taken"),
    [
        (b"", 10.0, 3),  # no call is open: the first is on time, two are forgiven
        (b"", 299.0, 3),
        (b"", HOUR_S, 3),
        (b"", 2 * HOUR_S, 50),
        (OPEN, 10.0, 3),
        (OPEN, 299.0, 3),
        (OPEN, 300.0, 50),
    ],
)
def test_early_pings_are_counted_and_the_third_is_too_many(first: bytes, every_s: float, taken: int) -> None:
    server = opened()
    server.receive(first, 0.0)

    assert pings_until_the_end(server, every_s) == taken


def test_the_end_is_told_in_the_word_of_grpc() -> None:
    server = opened()

    pings_until_the_end(server, 1.0)

    (*acks, (kind, _, _, payload)) = sent(server.take())
    assert len(acks) == 3
    assert kind == frames.GOAWAY
    assert payload[8:] == b"too_many_pings"
    assert payload[4:8] == CALM.to_bytes(4, "big")


def test_answers_between_make_up_for_it() -> None:
    server = opened()

    for second in range(100):  # as a client measures its bandwidth: a PING after each answer, and two more
        ((_, stream, _),) = server.receive(frame(1, 5, 2 * second + 1, SMALL), float(second))
        answer(server, stream, b"body")
        server.take()
        server.receive(PING * 3, second + 0.5)

    assert not server.is_ended


def test_messages_of_a_long_call_make_up_for_it() -> None:
    server = opened()
    ((_, stream, _),) = server.receive(OPEN, 0.0)

    for second in range(100):
        server.send_data(stream, b"message")
        server.receive(PING * 3, float(second))

    assert not server.is_ended


def test_windows_that_we_open_make_up_for_it() -> None:
    """A client that uploads for long gets nothing but windows."""
    server = opened()
    ((_, stream, _),) = server.receive(OPEN, 0.0)

    for second in range(100):
        server.receive(frame(0, 0, 1, bytes(10_000)), float(second))
        server.grant(stream, 10_000)
        server.receive(PING * 3, second + 0.5)

    assert not server.is_ended


def test_acknowledgements_of_our_own_are_no_strikes() -> None:
    server = opened()

    for second in range(100):
        server.receive(frames.ping(b"whatever", ack=True), float(second))

    assert not server.is_ended


@pytest.mark.parametrize(
    ("rules", "every_s", "taken"),
    [
        (PingRules(max_strikes=0), 0.1, 50),
        (PingRules(max_strikes=5), 1.0, 6),
        (PingRules(min_interval_s=10.0, min_idle_interval_s=10.0), 10.0, 50),
        (PingRules(min_interval_s=10.0, min_idle_interval_s=10.0), 9.0, 3),
        (PingRules(min_interval_s=0.0, min_idle_interval_s=0.0), 0.1, 50),
    ],
)
def test_rules_may_be_others(rules: PingRules, every_s: float, taken: int) -> None:
    assert pings_until_the_end(opened(Http2Limits(pings=rules)), every_s) == taken


def test_flood_is_refused_also_where_pings_are_welcome() -> None:
    server = opened(Http2Limits(pings=PingRules(max_strikes=0)))

    server.receive(PING * 1_001, 0.0)

    assert error_of(server) is CALM


@pytest.mark.parametrize("rules", [PingRules(), PingRules(0.0, 0.0)], ids=["defaults", "any"])
def test_fronts_agree(front: Front, rules: PingRules) -> None:
    options = ServerOptions(Address("127.0.0.1", 0), front=front, pings=rules)

    with running(pool_of({"m": models.scale(2.0)}), options) as address, Http2Client(address) as client:
        with contextlib.suppress(ConnectionError):  # it ended before the last of them: what it said waits to be read
            for octets in (*[b"12345678"] * 4, b"the last"):
                client.h2.ping(octets)
                client.flush()
        while client.went_away is None and b"the last" not in client.pongs and not client.is_closed:
            client.receive()

    assert (client.went_away == CALM) is (rules == PingRules())
