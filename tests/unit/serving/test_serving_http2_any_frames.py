"""Any sequence of frames is understood or refused; what `h2` takes as an oracle, we take."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes.http2_server import DONE, EMPTY_SETTINGS, OPEN, SMALL, answer, sent

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits, PingRules
from holdfast.serving.http2.stream import Kind, Stream

messages = st.one_of(
    st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 9), st.binary(max_size=60)).map(
        lambda f: frame(f[0], f[1], f[2], f[3])
    ),
    st.sampled_from([OPEN, DONE, frame(0, 1, 1, b"abc"), frame(0, 0, 1, b"abc"), frame(9, 4, 1, b""), EMPTY_SETTINGS]),
    st.sampled_from([frame(1, 5, n, SMALL) for n in (3, 5, 7)] + [frame(3, 0, n, bytes(4)) for n in (1, 3)]),
)


@settings(max_examples=400, deadline=None)
@given(parts=st.lists(messages | st.binary(max_size=30), max_size=12), cut=st.integers(1, 50), memoise=st.booleans())
def test_any_frames_are_understood_or_refused(parts: list[bytes], cut: int, memoise: bool) -> None:
    data = PREFACE + EMPTY_SETTINGS + b"".join(parts)
    server = Http2Connection(Http2Limits(), 0.0, memoise=memoise)
    live: set[Stream] = set()

    for at in range(0, len(data), cut):
        for kind, stream, _ in server.receive(data[at : at + cut], 0.0):
            if kind in (Kind.BEGUN, Kind.WHOLE):
                assert stream not in live
                live.add(stream)
            if kind is Kind.DROPPED:  # maybe of one we took to be answered in this very batch
                live.discard(stream)
            if kind in (Kind.ENDED, Kind.WHOLE):
                answer(server, stream, b"x" * 50)
                live.remove(stream)
    if not server.is_ended:
        assert live == set(server.streams.values())
    assert len(sent(server.take())) < 100


# `h2` lets a RST_STREAM on an idle stream pass, which RFC 9113 6.4 forbids
@settings(max_examples=300, deadline=None)
@given(parts=st.lists(messages.filter(lambda part: part[3] != frames.RST_STREAM), max_size=6))
def test_what_the_oracle_takes_we_take(parts: list[bytes]) -> None:
    """Where `h2` accepts a sequence of frames without an error, we see the same requests and bodies."""
    parts = [PREFACE + EMPTY_SETTINGS, *parts, frames.ping(b"the end.", ack=False)]  # no header block is left open
    oracle = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="latin-1"))
    oracle.initiate_connection()
    ours = Http2Connection(Http2Limits(pings=PingRules(max_strikes=0)), 0.0)  # the oracle counts none
    bodies: dict[int, bytes] = {}
    expected: dict[int, bytes] = {}
    try:
        for part in parts:
            for event in oracle.receive_data(part):
                if isinstance(event, h2.events.RequestReceived):
                    expected[event.stream_id] = b""
                if isinstance(event, h2.events.DataReceived):
                    expected[event.stream_id] += event.data
                if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                    return  # who is reset, and when, is a matter of taste in places
        if any(kind in (frames.RST_STREAM, frames.GOAWAY) for kind, *_ in sent(oracle.data_to_send())):
            return
    except Exception:
        return  # it refuses: some of that we forgive, and the tests above say what we must not

    for part in parts:
        for kind, stream, data in ours.receive(part, 0.0):
            if kind in (Kind.BEGUN, Kind.WHOLE):
                bodies[stream.id] = b""
            bodies[stream.id] += bytes(data)

    assert not ours.is_ended, ours.fault
    assert bodies == expected
