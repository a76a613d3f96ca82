"""One HTTP request to the routes, whichever version of HTTP it came by: inference through the scheduler, slow calls on
another thread, the rest at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from holdfast.errors import RequestError
from holdfast.inference.tensors import TensorResponse
from holdfast.serving.native.backend import Backend, PeerFacts
from holdfast.serving.native.infer import Inference
from holdfast.serving.native.long_work import parsed_room
from holdfast.serving.parameters import InferCall
from holdfast.serving.routes import HttpResponse, failure, header_length_of
from holdfast.serving.rpc import CallContext

Respond = Callable[[HttpResponse], None]


def context_of(facts: PeerFacts, headers: Mapping[str, str], deadline_s: float | None = None) -> CallContext:
    """What the calls are told of a request."""
    return CallContext(deadline_s, headers, facts.peer, facts.is_admin, facts.is_local, facts.spiffe_id)


class HttpExchange:
    """Answers one request; `respond` is called once, on the loop's thread."""

    __slots__ = ("_backend", "_facts", "_headers", "_method", "_path", "_respond")

    def __init__(
        self, backend: Backend, facts: PeerFacts, method: str, path: str, headers: Mapping[str, str], respond: Respond
    ) -> None:
        self._backend = backend
        self._facts = facts
        self._method = method
        self._path = path
        self._headers = headers
        self._respond = respond

    def start(self, body: bytes | memoryview) -> Inference | None:
        """Take the request in, with its whole body. Returns it if it is an inference that must wait."""
        backend, routes = self._backend, self._backend.routes
        context = context_of(self._facts, self._headers)
        target = routes.infer_target(self._method, self._path)
        if target is not None:
            inference = Inference(backend, self._answered, self._refused)
            room_bytes = parsed_room(_json_bytes(self._headers, body))
            inference.start(lambda: routes.decode_infer(target, self._headers, body, context), None, room_bytes)
            return inference if inference.is_queued else None
        if routes.is_slow(self._method, self._path):
            backend.executor.submit(self._answer_elsewhere, body, context)
        else:
            self._respond(routes.answer(self._method, self._path, self._headers, body, context))
        return None

    def _answer_elsewhere(self, body: bytes | memoryview, context: CallContext) -> None:
        response = self._backend.routes.answer(self._method, self._path, self._headers, body, context)
        self._backend.tick.post(lambda: self._respond(response))

    def _answered(self, call: InferCall, answer: TensorResponse) -> None:
        try:
            response = self._backend.routes.encode_infer(call, answer)
        except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
            response = failure(error)
        self._respond(self._backend.routes.finished(response, self._headers))

    def _refused(self, error: BaseException) -> None:
        self._respond(self._backend.routes.finished(failure(error), self._headers))


def _json_bytes(headers: Mapping[str, str], body: bytes | memoryview) -> int:
    """How much of a body is JSON, as far as its head says so."""
    try:
        length = header_length_of(headers)
    except RequestError:
        return 0  # said when it is decoded
    return len(body) if length is None else min(length, len(body))
