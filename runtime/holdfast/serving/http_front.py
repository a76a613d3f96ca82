"""The HTTP/1.1 front: routes of the Open Inference Protocol over connections that the splice hands to it.

Rules: one thread a connection, bounded by the splice; a request that breaks the framing is answered once and the
connection closed; an error of one request never touches another connection. This is one of the three doors where
unknown errors are caught (the rpc edge).
"""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass, field
from http import HTTPStatus
from urllib.parse import unquote

from holdfast import __version__
from holdfast.clock import Clock
from holdfast.errors import RequestError
from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip_json
from holdfast.serving.http1 import HttpError, HttpLimits, HttpRequest
from holdfast.serving.http_wire import ConnectionClosed, HttpReader
from holdfast.serving.service import InferenceService
from holdfast.serving.status import status_of

HEADER_LENGTH = "inference-header-content-length"
JSON_TYPE = "application/json"
BINARY_TYPE = "application/octet-stream"

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([^/]+))?(?:/(ready|infer))?\Z")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """An answer before it is framed."""

    status: int
    body: bytes = b""
    content_type: str = JSON_TYPE
    headers: dict[str, str] = field(default_factory=dict)


class HttpFront:
    """Answers HTTP/1.1 on sockets it is handed. Thread-safe."""

    def __init__(self, service: InferenceService, clock: Clock, limits: HttpLimits) -> None:
        self._service = service
        self._clock = clock
        self._limits = limits
        self._lock = threading.Lock()
        self._idle_or_busy: dict[socket.socket, bool] = {}  # open connections; True while a request is being answered
        self._threads: set[threading.Thread] = set()
        self._stopping = threading.Event()

    def serve(self, connection: socket.socket, first: bytes) -> None:
        """Answer requests on a blocking socket, in a thread of its own, until it ends. `first` was read already."""
        connection.setblocking(True)
        thread = threading.Thread(target=self._run, args=(connection, first), name="http", daemon=True)
        with self._lock:
            self._threads.add(thread)
            self._idle_or_busy[connection] = False
        thread.start()

    @property
    def open_connections(self) -> int:
        with self._lock:
            return len(self._idle_or_busy)

    def stop(self, grace_s: float) -> None:
        """Close idle connections, let busy ones finish within `grace_s`, then close them too."""
        self._stopping.set()
        deadline_s = self._clock.monotonic_s() + grace_s
        with self._lock:
            threads = list(self._threads)
            for connection, busy in self._idle_or_busy.items():
                if not busy:
                    _shut(connection)
        for thread in threads:
            thread.join(max(0.0, deadline_s - self._clock.monotonic_s()))
        with self._lock:
            for connection in self._idle_or_busy:
                _shut(connection)
        for thread in threads:
            thread.join(1.0)

    def _run(self, connection: socket.socket, first: bytes) -> None:
        try:
            self._answer_all(connection, HttpReader(connection, first, self._clock, self._limits))
        except (ConnectionClosed, OSError):
            pass  # the peer left, or was too slow: nobody is there to be told
        finally:
            with self._lock:
                self._idle_or_busy.pop(connection, None)
                self._threads.discard(threading.current_thread())
            _shut(connection)
            connection.close()

    def _answer_all(self, connection: socket.socket, reader: HttpReader) -> None:
        while not self._stopping.is_set():
            try:
                request = reader.next_request()
            except HttpError as error:
                response = HttpResponse(error.status, oip_json.error_body(str(error)))
                self._send(connection, response, keep_alive=False, head_only=False)
                reader.drain()  # else the kernel resets the connection and the peer may lose our answer
                return
            with self._lock:
                self._idle_or_busy[connection] = True
            response = self._answer(request)
            keep_alive = request.keep_alive and not self._stopping.is_set()
            self._send(connection, response, keep_alive=keep_alive, head_only=request.method == "HEAD")
            with self._lock:
                self._idle_or_busy[connection] = False
            if not keep_alive:
                return

    def _answer(self, request: HttpRequest) -> HttpResponse:
        try:
            return self._route(request)
        except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
            status = status_of(error)
            return HttpResponse(status.http, oip_json.error_body(status.text), headers={"Holdfast-Code": status.code})

    def _route(self, request: HttpRequest) -> HttpResponse:
        path = request.path
        if path == "/v2/health/live":
            return _only("GET", request) or HttpResponse(200)
        if path == "/v2/health/ready":
            return _only("GET", request) or HttpResponse(200 if self._service.is_ready else 400)
        if path in ("/v2", "/v2/"):
            return _only("GET", request) or HttpResponse(200, oip_json.server_metadata(__version__))
        match = _MODEL.fullmatch(path)
        if match is None:
            return HttpResponse(404, oip_json.error_body(f"no such route: {path[:200]}"))
        name, version, verb = unquote(match[1]), unquote(match[2] or ""), match[3]
        if verb == "infer":
            return _only("POST", request) or self._infer(request, name, version)
        if verb == "ready":
            ready = self._service.is_model_ready(name, version)
            return _only("GET", request) or HttpResponse(200 if ready else 400)
        return _only("GET", request) or HttpResponse(200, oip_json.model_metadata(self._service.model(name, version)))

    def _infer(self, request: HttpRequest, name: str, version: str) -> HttpResponse:
        form = oip_json.OutputForm()
        header_length = _header_length(request)

        def decode() -> TensorRequest:
            nonlocal form
            if header_length == 0:
                tensors, form = oip_json.decode_raw_request(request.body, self._service.model(name, version), version)
            else:
                tensors, form = oip_json.decode_request(request.body, header_length, name, version)
            return tensors

        body = oip_json.encode_response(self._service.infer(decode), form)
        if body.header_length is None:
            return HttpResponse(200, body.data)
        return HttpResponse(200, body.data, BINARY_TYPE, {"Inference-Header-Content-Length": str(body.header_length)})

    def _send(self, connection: socket.socket, response: HttpResponse, *, keep_alive: bool, head_only: bool) -> None:
        lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
        if response.body:
            lines.append(f"Content-Type: {response.content_type}")
        lines.append(f"Content-Length: {len(response.body)}")
        lines += [f"{name}: {value}" for name, value in response.headers.items()]
        if not keep_alive:
            lines.append("Connection: close")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        connection.settimeout(self._limits.body_timeout_s)
        connection.sendall(head if head_only else head + response.body)


def _only(method: str, request: HttpRequest) -> HttpResponse | None:
    """405 unless the request has this method (HEAD counts as GET)."""
    if request.method == method or (method == "GET" and request.method == "HEAD"):
        return None
    text = f"expected {method} for this route, got {request.method}"
    return HttpResponse(405, oip_json.error_body(text), headers={"Allow": method})


def _header_length(request: HttpRequest) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise RequestError(f"expected a whole number as Inference-Header-Content-Length, got {text[:40]!r}")
    return int(text)


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it was closed already
