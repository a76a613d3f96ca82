"""Requests that are taken whole, in one step: the same as frame by frame, however the octets are cut."""

from __future__ import annotations

import hpack
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.fakes.http2_server import BLOCK, EMPTY_SETTINGS, POST, SMALL, answer, body_of, opened

from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.stream import Kind


def steady(*more: tuple[str, str]) -> bytes:
    """A block that changes no table, so that its head is remembered."""
    fields = [*POST, *more]
    return hpack.Encoder().encode([hpack.NeverIndexedHeaderTuple(*each) for each in fields], huffman=False)


requests = st.tuples(
    st.sampled_from(
        [steady()] * 3
        + [steady(("grpc-timeout", text), ("te", "trailers")) for text in ("1S", "2S", " S", "\0S")]
        + [steady(("content-length", "7")), steady()[:-1], steady(("te", "gzip")), BLOCK, SMALL]
    ),
    st.sampled_from([4, 4, 4, 4, 4, 4, 5, 0]),
    st.sampled_from([1, 1, 1, 1, 1, 1, 0, 9]),
    st.integers(0, 120),
    st.sampled_from([0, 0, 0, 0, 0, 0, 2, -2, 1]),
    st.sampled_from([0, 0, 0, 0, 0, 0, 0, 0, -2]),
)


@settings(max_examples=300, deadline=None)
@given(
    calls=st.lists(requests, min_size=3, max_size=12),
    cut=st.sampled_from([50, 300, 700, 5_000]),
    window=st.sampled_from([100, 1_000]),
    behind=st.sampled_from([0, 0, 3]),
)
@example(  # bodies behind all heads, one of them shorter than its content-length says
    calls=[(steady(*more), 4, 1, 0, 0, 0) for more in ((), (), (("content-length", "7"),), ())],
    cut=300,
    window=100,
    behind=3,
)
def test_whole_requests_are_the_same_frame_by_frame(calls: list, cut: int, window: int, behind: int) -> None:
    """With heads remembered, a head and its body are taken in one step: nobody may see that."""
    late: list[bytes] = []
    data, stream_id = PREFACE + EMPTY_SETTINGS, -1
    for block, flags, data_flags, size, skip, astray in calls:
        stream_id = max(1, stream_id + 2 + skip)
        data += frame(1, flags, stream_id, block)
        late.append(frame(0, data_flags, max(0, stream_id + astray), bytes(size)))
        if len(late) > behind:
            data += b"".join(late)
            late.clear()
    limits = Http2Limits(stream_window_bytes=window, connection_window_bytes=70_000, max_streams=6)
    seen = []

    for memoise in (True, False):
        server = Http2Connection(limits, 0.0, memoise=memoise)
        told = []
        for at in range(0, len(data), cut):
            for kind, stream, piece in server.receive(data[at : at + cut], 0.0):
                told.append((kind, stream.id, stream.head, bytes(piece)))
                if kind is Kind.WHOLE and stream.id % 4 == 1:
                    answer(server, stream, b"x")
        streams = {n: (s.send_window, s.remote_ended, s.local_ended) for n, s in server.streams.items()}
        seen.append((told, server.take(), server.is_ended, streams))

    assert seen[0] == seen[1]


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([0, 1, 4_095, 4_096, 16_384]), min_size=1, max_size=4),
    cut=st.sampled_from([1_000, 4_999, 20_000, 100_000]),
    padded=st.booleans(),
)
def test_long_frames_are_handed_on_as_they_come(sizes: list[int], cut: int, padded: bool) -> None:
    data, body = b"", b""
    for index, size in enumerate(sizes):
        piece = bytes([index + 1]) * size
        body += piece
        is_last = index == len(sizes) - 1
        flags = is_last | (8 if padded and size < 16_000 else 0)
        data += frame(0, flags, 1, b"\2" + piece + bytes(2) if flags & 8 else piece)
    server = opened()
    events = server.receive(frame(1, 4, 1, BLOCK), 0.0)

    for at in range(0, len(data), cut):
        for kind, stream, piece in server.receive(data[at : at + cut], 0.0):
            events.append((kind, stream, bytes(piece)))

    assert (events[-1][0] in (Kind.ENDED, Kind.WHOLE), body_of(events)) == (True, body)
    assert not server.is_mid_frame
    assert not server.is_ended
