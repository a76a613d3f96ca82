"""An `h2` client over a socket, plain or TLS: sends what a test wants, in the frames it wants."""

from __future__ import annotations

import socket
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
from tests.fakes.serving import INFER, TIMEOUT_S

from holdfast.serving.server import Address

GRPC = (("content-type", "application/grpc"), ("te", "trailers"))


class Answer:
    """What came back on one stream."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.trailers: dict[str, str] = {}
        self.body = b""
        self.is_whole = False
        self.reset_code: int | None = None

    @property
    def grpc_status(self) -> tuple[int, str]:
        fields = self.trailers or self.headers
        return int(fields["grpc-status"]), unquote(fields.get("grpc-message", ""))


class Http2Client:
    """One connection. Every method waits for what it promises, with a deadline."""

    def __init__(self, address: Address, connection: socket.socket | None = None) -> None:
        self.socket = connection or socket.create_connection((address.host, address.port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.went_away: int | None = None
        self.pongs: list[bytes] = []
        self.is_closed = False
        self.flush()

    def __enter__(self) -> Http2Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def flush(self) -> None:
        self.socket.sendall(self.h2.data_to_send())

    def begin(self, path: str = INFER, method: str = "POST", headers: tuple = GRPC, *, end: bool = False) -> int:
        stream_id = self.h2.get_next_available_stream_id()
        pseudo = [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)]
        self.h2.send_headers(stream_id, [*pseudo, *headers], end_stream=end)
        self.answers[stream_id] = Answer()
        self.flush()
        return stream_id

    def send(self, stream_id: int, body: bytes, *, end: bool = True) -> None:
        """The whole body, waiting for windows; not to its end if the answer comes first."""
        while body and not self.answers[stream_id].is_whole:
            room = min(self.h2.local_flow_control_window(stream_id), self.h2.max_outbound_frame_size)
            if room <= 0:
                self.receive()
                continue
            self.h2.send_data(stream_id, body[:room], end_stream=end and room >= len(body))
            body = body[room:]
            self.flush()

    def ask(self, message: bytes, flag: int = 0, headers: tuple = GRPC, path: str = INFER) -> Answer:
        """One unary gRPC call."""
        stream_id = self.begin(path, headers=headers)
        self.send(stream_id, bytes((flag,)) + len(message).to_bytes(4, "big") + message)
        return self.wait(stream_id)

    def wait(self, stream_id: int) -> Answer:
        answer = self.answers[stream_id]
        while not answer.is_whole and not self.is_closed:
            self.receive()
        return answer

    def wait_closed(self) -> None:
        while not self.is_closed:
            self.receive()

    def receive(self) -> None:
        """What comes next; a connection that ends is noted."""
        try:
            data = self.socket.recv(65_536)
        except ConnectionError:
            data = b""
        if not data:
            self.is_closed = True
            return
        for event in self.h2.receive_data(data):
            self._note(event)
        try:
            self.flush()
        except OSError:
            pass  # it ended after what we have just read

    def _note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            self.went_away = event.error_code
        if isinstance(event, h2.events.PingAckReceived):
            self.pongs.append(event.ping_data)
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0)
        if answer is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = dict(event.headers)
        if isinstance(event, h2.events.TrailersReceived):
            answer.trailers = dict(event.headers)
        if isinstance(event, h2.events.DataReceived):
            answer.body += event.data
            if event.stream_id in self.h2.streams:
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if isinstance(event, h2.events.StreamReset):
            answer.reset_code = event.error_code
        if isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            answer.is_whole = True
