"""Plain inference calls that share a run with nobody, from octets to octets: large tensors, and shared memory.

Rules: only calls that need no decision go here: a known message, a model that is quick for tensors of this size,
nothing waiting in front of it, time left. Every other call goes the whole way (`Caller.infer`), where it gets the
same answer or the reason why not. A model whose rows may mix runs here only in a batch that was probed as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from holdfast.clock import Clock
from holdfast.errors import HoldfastError
from holdfast.inference.pool import ServedModel
from holdfast.inference.tensors import TensorRequest, TensorResponse
from holdfast.serving.grpc_wire import PREFIX_BYTES, framed_prefix
from holdfast.serving.native.call_notes import Timeouts
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.native.http_answers import whole_answer
from holdfast.serving.native.lane import WholeCall
from holdfast.serving.native.layouts import Fit, Layout, arrays_in
from holdfast.serving.native.shared_calls import SharedCall, SharedCalls
from holdfast.serving.parameters import InferCall, OutputForm
from holdfast.serving.protocols import OK, QuickRuns, TapEvent
from holdfast.serving.rpc import RpcTable
from holdfast.serving.service import InferenceService

_PLAIN = OutputForm()


_Found = tuple[ServedModel, Layout | SharedCall, str, float]  # a call that may run now: its id, and what its run takes


class Alone:
    """Answers calls one by one. On the loop's thread."""

    def __init__(self, codec: InferCodec, rpc: RpcTable, service: InferenceService, clock: Clock) -> None:
        self._timeouts = Timeouts()
        self._codec = codec
        self._shared = SharedCalls()
        self._rpc = rpc
        self._service = service
        self._clock = clock

    def run(self, calls: Sequence[WholeCall], quick: QuickRuns) -> list[WholeCall]:
        """Answer those that may run at once. Returns the others."""
        left: list[WholeCall] = []
        left_s = quick.turn_s
        for call in calls:
            peer, stream, _, _ = call
            try:
                found = self._find(call, quick) if left_s > 0 else None
                if found is None or not self._answer(call, found, quick):
                    left.append(call)
                else:
                    left_s -= found[3]
            except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
                peer.fail(stream, error)
        return left

    def _find(self, call: WholeCall, quick: QuickRuns) -> _Found | None:
        peer, stream, body, note = call
        asked: tuple[Layout | SharedCall, str] | None = None
        if note.http is not None:
            assert type(body) is bytes, "as it came"
            asked = note.http.match(body, len(body))
        else:
            if peer.regions is not None and type(body) is bytes:
                asked = self._shared.find(body)
            asked = asked or self._codec.look(body)
        if asked is None or peer.seen_s + self._timeouts.allowed_s(stream, note) <= self._clock.monotonic_s():
            return None
        what, request_id = asked
        model = quick.find_free(what.kind.model, what.kind.version)
        if model is None:
            return None
        session, fit = model.session, what.fit
        if fit is not None and fit.number == session.number:
            alone_s: float | None = fit.alone_s
        else:
            alone_s = session.traits.alone_s(0, sum(map(math.prod, what.shapes)))
        if alone_s is None or alone_s > quick.inline_limit_s:
            return None
        return model, what, request_id, alone_s

    def _answer(self, call: WholeCall, found: _Found, quick: QuickRuns) -> bool:
        """Run and answer. False, and nothing was answered, if it must go the whole way."""
        peer, stream, body, note = call
        model, asked, request_id, alone_s = found
        kind, session, fit, form = asked.kind, model.session, asked.fit, _PLAIN
        try:
            if isinstance(asked, SharedCall):
                assert peer.regions is not None, "found only for those who may use them"
                inputs, form = asked.read(peer.regions), asked.form
            else:
                inputs = arrays_in(body, asked)
            if fit is None or fit.number != session.number:
                session.check(inputs, kind.outputs)
                rows = session.shared_rows(inputs)
                if rows and session.traits.mixing.bucket_for(rows) != rows:
                    return False
                rows = rows or next((shape[0] for shape in asked.shapes if shape), 1)
                asked.fit = fit = Fit(session.number, alone_s, rows)
        except HoldfastError:
            return False  # said on the whole way
        outputs = quick.run_quick(model, inputs, kind.outputs, (fit.rows,), (peer.seen_s,))
        if outputs is None:
            return False
        if self._service.has_taps:
            took_s = self._clock.monotonic_s() - peer.seen_s
            self._service.tell_event(TapEvent(kind.model, model.version, (request_id,), (took_s,), OK, inputs, outputs))
        response = TensorResponse(model.name, model.version, request_id, outputs, session.labels)
        if isinstance(asked, Layout) and note.http is not None:
            answer = whole_answer(response, wants_json=asked.wants_json)
            peer.answer(stream, note, None, (answer,), len(answer))
            return True
        message = self._codec.encode(form, response)
        if message is None:
            request = TensorRequest(kind.model, kind.version, request_id, inputs, kind.outputs)
            message = self._rpc.encode_infer(InferCall(request, form), response)
        peer.answer(stream, note, None, (framed_prefix(len(message)), message), PREFIX_BYTES + len(message))
        return True
