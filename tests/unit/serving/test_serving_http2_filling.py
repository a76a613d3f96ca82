"""A large body that goes straight to its place: the same octets, windows and faults as on the way through events."""

from __future__ import annotations

import hpack
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import FRAME_HEADER_BYTES, Http2Limits
from holdfast.serving.http2.stream import Event, Kind

HEAD = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")], False)
SIZES = st.integers(0, 9_000)
FLAGS = st.sampled_from([0, 0, 0, 0, frames.END_STREAM, frames.PADDED, 0x4])


class Owner:
    """Gathers the bodies of all streams; that of stream 1 in a place, once its first octets came."""

    def __init__(self, place_bytes: int, limits: Http2Limits) -> None:
        self.machine = Http2Connection(limits, 0.0)
        self.machine.receive(PREFACE + frames.settings({}), 0.0)
        self.place = memoryview(bytearray(place_bytes))
        self.bodies: dict[int, bytes] = {}
        self.ends: dict[int, list[Kind]] = {}
        self.filled = 0  # octets that came through `fill`

    def receive(self, data: bytes) -> None:
        self._note(self.machine.receive(data, 0.0))

    def receive_large(self, data: bytes) -> None:
        view, at = memoryview(data), 0
        while at < len(view):
            events: list[Event] = []
            taken = self.machine.fill(view[at:], events)
            self.filled += taken
            at += taken
            self._note(events)
            if at < len(view):
                cut = at + self.machine.until_filling(view[at:])
                assert cut > at
                self.receive(bytes(view[at:cut]))
                at = cut

    def _note(self, events: list[Event]) -> None:
        for kind, stream, piece in events:
            if stream.id != 1:
                self.bodies[stream.id] = self.bodies.get(stream.id, b"") + bytes(piece)
            elif len(piece):
                stream.place = self.place
                end = stream.filled + len(piece)
                assert end <= len(self.place)
                stream.place[stream.filled : end] = piece
                stream.filled = end
            if kind is not Kind.DATA:
                said = [Kind.BEGUN, Kind.ENDED] if kind is Kind.WHOLE else [kind]
                self.ends[stream.id] = self.ends.get(stream.id, []) + said

    def state(self) -> tuple[object, ...]:
        """All that must be the same once the last frame is whole; credit for the connection may come in other parts."""
        machine, receiver = self.machine, self.machine._receiver
        streams = {each.id: (each.recv_window, each.remote_ended) for each in machine.streams.values()}
        stream = machine.streams.get(1)
        body = b"" if stream is None else bytes(self.place[: stream.filled])
        out, credit = self._said()
        return (
            body, self.bodies, self.ends, streams, receiver._window - credit, receiver._owed + credit,
            machine.is_mid_frame, machine.is_ended, out, [str(fault) for fault in machine.faults],
        )  # fmt: skip

    def _said(self) -> tuple[list[bytes], int]:
        data, at, out, credit = self.machine.take(), 0, [], 0
        while at < len(data):
            end = at + FRAME_HEADER_BYTES + int.from_bytes(data[at : at + 3], "big")
            if data[at + 3] == frames.WINDOW_UPDATE and data[at + 5 : at + 9] == bytes(4):
                credit += int.from_bytes(data[end - 4 : end], "big")
            else:
                out.append(data[at:end])
            at = end
        return out, credit


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 1, 1, 3]), FLAGS, SIZES), max_size=12),
    st.lists(st.integers(1, 40_000), min_size=1, max_size=6),
    st.integers(20_000, 70_000),
)
def test_whatever_goes_to_its_place_means_what_it_means_as_events(
    sent: list[tuple[int, int, int]], cuts: list[int], window: int
) -> None:
    limits = Http2Limits(stream_window_bytes=window, connection_window_bytes=90_000)
    data = b"".join(frame(frames.HEADERS, frames.END_HEADERS, number, HEAD) for number in (1, 3))
    for place, (stream_id, flags, size) in enumerate(sent):
        data += frame(frames.DATA, flags, stream_id, bytes([place + 1]) * size)
    slow, quick = Owner(200_000, limits), Owner(200_000, limits)

    at = turn = 0
    while at < len(data):
        piece = data[at : at + cuts[turn % len(cuts)]]
        slow.receive(piece)
        quick.receive_large(piece)
        at, turn = at + len(piece), turn + 1

    assert quick.state() == slow.state()


def test_frames_behind_one_another_are_copied_once() -> None:
    owner = Owner(200_000, Http2Limits())
    data = frame(frames.HEADERS, frames.END_HEADERS, 1, HEAD) + frame(frames.DATA, 0, 1, b"a" * 100_000)

    owner.receive_large(data + frame(frames.DATA, frames.END_STREAM, 1, b"b" * 50_000))

    stream = owner.machine.streams[1]
    assert bytes(owner.place[: stream.filled]) == b"a" * 100_000 + b"b" * 50_000
    assert owner.filled > 140_000
    assert owner.ends == {1: [Kind.BEGUN, Kind.ENDED]}


def test_body_larger_than_its_place_is_left_to_its_owner() -> None:
    owner = Owner(10_000, Http2Limits())
    owner.receive(frame(frames.HEADERS, frames.END_HEADERS, 1, HEAD) + frame(frames.DATA, 0, 1, b"a" * 5_000))
    stream = owner.machine.streams[1]
    data = frame(frames.DATA, 0, 1, b"b" * 6_000)
    events: list[Event] = []

    assert owner.machine.fill(memoryview(data), events) == 0
    assert (stream.filled, events) == (5_000, [])


def test_body_beyond_its_window_ends_the_stream() -> None:
    owner = Owner(100_000, Http2Limits(stream_window_bytes=20_000))
    head = frame(frames.HEADERS, frames.END_HEADERS, 1, HEAD)

    owner.receive_large(head + b"".join(frame(frames.DATA, 0, 1, b"x" * 6_000) for _ in range(4)))

    assert owner.ends[1][-1] is Kind.DROPPED
    assert owner.machine.take().endswith(frames.reset(1, ErrorCode.FLOW_CONTROL_ERROR))
