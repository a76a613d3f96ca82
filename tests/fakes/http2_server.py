"""Our HTTP/2 machine without a socket: opened, with an `h2` client at its other end, and what it sent taken apart."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events
import h2.settings
import hpack

from holdfast.serving.http2 import frames
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.errors import ErrorCode
from holdfast.serving.http2.frames import PREFACE, frame
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.http2.sender import AnswerForm
from holdfast.serving.http2.stream import Event, Stream

POST = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", "/p")]
BLOCK = hpack.Encoder().encode([*POST, ("te", "trailers")])
SMALL = hpack.Encoder().encode([(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")], False)
FORM = AnswerForm(b"\x88", b"\x00\x0bgrpc-status\x010")
EMPTY_SETTINGS = frame(frames.SETTINGS, 0, 0)
HEADERS_FLAGS = frames.END_HEADERS
OPEN = frame(1, 4, 1, BLOCK)  # a stream whose body is still to come
DONE = frame(1, 5, 1, SMALL)


class Pair:
    """An `h2` client and our server, with all bytes passed on at once."""

    def __init__(self, limits: Http2Limits | None = None, **client_settings: int) -> None:
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        if client_settings:
            codes = {h2.settings.SettingCodes[name]: value for name, value in client_settings.items()}
            self.client.local_settings.update(codes)
            self.client.local_settings.acknowledge()
        self.client.initiate_connection()
        self.server = Http2Connection(limits or Http2Limits(), 0.0)
        self.told: list[h2.events.Event] = []
        self.step()

    def step(self, cut: int = 0) -> list[Event]:
        """Until nobody has more to say. `cut` > 0: the client's bytes arrive in pieces of this size."""
        events: list[Event] = []
        while True:
            data = self.client.data_to_send()
            for at in range(0, len(data), cut or len(data) or 1):
                came = self.server.receive(data[at : at + (cut or len(data))], 0.0)
                events += [(kind, stream, bytes(piece)) for kind, stream, piece in came]
            back = self.server.take()
            if back:
                self.told += self.client.receive_data(back)
            if not data and not back:
                return events

    def ask(
        self, stream_id: int, body: bytes = b"", extra: list[tuple[str, str]] | None = None, cut: int = 0
    ) -> list[Event]:
        """One whole request, sent as windows allow."""
        self.client.send_headers(stream_id, [*POST, *(extra or [])], end_stream=not body)
        events = self.step(cut)
        while body:
            room = min(self.client.local_flow_control_window(stream_id), self.client.max_outbound_frame_size)
            if room == 0:
                stream = self.server.streams[stream_id]
                self.server.grant(stream, 100_000)
                self.step()
                continue
            self.client.send_data(stream_id, body[:room], end_stream=room >= len(body))
            body = body[room:]
            events += self.step(cut)
        return events

    def answers(self, stream_id: int) -> tuple[bytes, bool]:
        """What the client got on a stream: the body and whether trailers ended it."""
        body = b""
        for event in self.told:
            if isinstance(event, h2.events.DataReceived) and event.stream_id == stream_id:
                body += event.data
                self.client.acknowledge_received_data(event.flow_controlled_length, stream_id)
        ended = any(isinstance(e, h2.events.TrailersReceived) and e.stream_id == stream_id for e in self.told)
        self.told = [e for e in self.told if not isinstance(e, h2.events.DataReceived)]
        return body, ended


def body_of(events: list[Event]) -> bytes:
    return b"".join(bytes(data) for _, _, data in events)


def opened(limits: Http2Limits | None = None) -> Http2Connection:
    server = Http2Connection(limits or Http2Limits(), 0.0)
    server.receive(PREFACE + EMPTY_SETTINGS, 0.0)
    server.take()
    return server


def sent(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of every frame in the bytes."""
    found = []
    while data:
        size = int.from_bytes(data[:3], "big")
        found.append((data[3], data[4], int.from_bytes(data[5:9], "big"), data[9 : 9 + size]))
        data = data[9 + size :]
    return found


def answer(server: Http2Connection, stream: Stream, *parts: bytes) -> None:
    server.answer(stream, FORM, parts, sum(map(len, parts)))


def error_of(server: Http2Connection) -> ErrorCode:
    """The code of the GOAWAY."""
    last = sent(server.take())[-1]
    assert last[0] == frames.GOAWAY
    return ErrorCode(int.from_bytes(last[3][4:8], "big"))
