"""Plain ModelInfer calls that came in one turn of the loop, from octets to octets: one run for all that fit together.

Rules: only calls that need no decision go here: a known layout, a model that is quick and whose rows may share a run,
nothing waiting in front of them, time left. Every other call goes the whole way (`Http2Peer.infer`), where it gets the
same answer or the reason why not. What was asked is never kept: the same bytes twice are computed twice.

Why: 32 calls that each become a request object, arrays, a queue entry, a response and a message cost 25 us apiece;
cut out of the octets, joined, run and cut apart together they cost 5.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from holdfast.clock import Clock
from holdfast.inference.pool import ServedModel
from holdfast.inference.tensors import Array
from holdfast.serving import grpc_wire
from holdfast.serving.grpc_wire import GrpcFault, timeout_s
from holdfast.serving.http2.connection import Http2Connection
from holdfast.serving.http2.hpack import encode
from holdfast.serving.http2.sender import AnswerForm
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.codec import InferCodec, Layout, RequestKind
from holdfast.serving.protocols import OK, QuickRuns, TapEvent
from holdfast.serving.rpc import TRACEPARENT, is_traceparent
from holdfast.serving.service import InferenceService

logger = logging.getLogger(__name__)

MAX_KNOWN = 256  # timeouts, and forms of answers per model, that are remembered

_TRACE_CHARS = 55  # W3C Trace Context 3.2: every valid traceparent of version 00
_TRACE_PREFIX = encode(((TRACEPARENT, "0" * _TRACE_CHARS),))[:-_TRACE_CHARS]
PLAIN = AnswerForm(grpc_wire.HEAD, grpc_wire.OK_TRAILERS)
TRACED = AnswerForm(grpc_wire.HEAD, grpc_wire.OK_TRAILERS + _TRACE_PREFIX, _TRACE_CHARS)


class Caller(Protocol):
    """A connection that calls came by."""

    machine: Http2Connection
    seen_s: float  # when the turn's octets came

    def infer(self, stream: Stream, body: bytes) -> None:
        """Take a call the whole way."""

    def fail(self, stream: Stream, error: BaseException) -> None:
        """Answer a call with what went wrong."""


Call = tuple[Caller, Stream, bytes]
_Member = tuple[Caller, Stream, bytes, Layout, str]
_Parts = tuple[int, tuple[bytes, ...]]


class _Group:
    """Calls that share a run."""

    __slots__ = ("kind", "members", "model", "rows", "total")

    def __init__(self, kind: RequestKind, model: ServedModel) -> None:
        self.kind = kind
        self.model = model
        self.members: list[_Member] = []
        self.rows: list[int] = []
        self.total = 0


class Lane:
    """Answers what came in one turn. On the loop's thread; `calls` is filled by the connections."""

    def __init__(self, codec: InferCodec, service: InferenceService, clock: Clock, max_calls: int) -> None:
        self.calls: list[Call] = []
        self._codec = codec
        self._quick: QuickRuns
        self._service = service
        self._clock = clock
        self._max_calls = max_calls
        self._timeouts: dict[str, float] = {}
        self._parts: dict[object, dict[tuple[int, int], _Parts]] = {}

    def serve_with(self, quick: QuickRuns) -> None:
        """Who runs the models comes after us, because it wants the loop."""
        self._quick = quick

    def run(self, in_flight: int) -> None:
        """Answer all calls, or pass them on. `in_flight` others are under way."""
        calls, self.calls = self.calls, []
        places = max(0, self._max_calls - in_flight)
        calls, over = calls[:places], calls[places:]
        groups, left = self._grouped(calls)
        for group in groups:
            try:
                is_answered = self._run(group)
            except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
                for peer, stream, *_ in group.members:
                    peer.fail(stream, error)
            else:
                if not is_answered:
                    left += [member[:3] for member in group.members]
        for peer, stream, body in left + over:
            peer.infer(stream, body)

    def _grouped(self, calls: list[Call]) -> tuple[list[_Group], list[Call]]:
        """Calls that may run now, by the run they share; and the others."""
        now_s, match = self._clock.monotonic_s(), self._codec.match
        left_s, limit_s = self._quick.turn_s, self._quick.inline_limit_s
        groups: list[_Group] = []
        left: list[Call] = []
        open_of: dict[RequestKind, _Group | None] = {}
        for call in calls:
            peer, stream, body = call
            found = match(body, len(body))
            if found is None or not self._is_on_time(peer, stream, now_s):
                left.append(call)
                continue
            layout, request_id = found
            kind, rows = layout.kind, layout.rows
            if kind not in open_of:
                open_of[kind] = self._opened(kind)
            group = open_of[kind]
            if group is None or left_s <= 0:
                left.append(call)
                continue
            traits = group.model.session.traits
            largest = traits.mixing.buckets[-1]
            if not 0 < rows <= largest or traits.alones_s[rows] > limit_s:
                left.append(call)
                continue
            left_s -= traits.shares_s[rows]
            if group.total + rows > largest:
                group = open_of[kind] = _Group(kind, group.model)
            if not group.members:
                groups.append(group)
            group.members.append((peer, stream, body, layout, request_id))
            group.rows.append(rows)
            group.total += rows
        return groups, left

    def _opened(self, kind: RequestKind) -> _Group | None:
        """A group for calls of this kind, if its model takes them now."""
        model = self._quick.find_quick(kind.model, kind.version) if kind.is_plain else None
        if model is None or not model.session.shares([(each.name, each.dtype, each.row_shape) for each in kind.inputs]):
            return None
        return None if kind.outputs and not model.session.has_outputs(kind.outputs) else _Group(kind, model)

    def _is_on_time(self, peer: Caller, stream: Stream, now_s: float) -> bool:
        text = stream.more.get("grpc-timeout") or stream.base.headers.get("grpc-timeout")
        if text is None:
            return True
        allowed_s = self._timeouts.get(text)
        if allowed_s is None:
            try:
                allowed_s = timeout_s(text)
            except GrpcFault:
                return False  # said on the whole way
            if len(self._timeouts) >= MAX_KNOWN:
                self._timeouts.clear()
            self._timeouts[text] = allowed_s
        return peer.seen_s + allowed_s > now_s

    def _run(self, group: _Group) -> bool:
        """Answer the calls of a group. False, and none was answered, if they must go the whole way."""
        kind, model, total = group.kind, group.model, group.total
        bucket = model.session.traits.mixing.bucket_for(total)
        assert bucket is not None, "more rows in a run than were probed"
        inputs = _joined(group, bucket)
        came_s = [peer.seen_s for peer, *_ in group.members]
        outputs = self._quick.run_quick(model, inputs, kind.outputs, group.rows, came_s)
        if outputs is None:
            return False
        parts_of = self._known_parts(model, outputs)
        answers = self._answers(group, outputs, parts_of)
        if answers is None:
            kind.is_plain = False
            return False
        self._tell(group, inputs, outputs, came_s)
        for (peer, stream, _, _, _), (size, parts) in zip(group.members, answers, strict=True):
            trace = stream.more.get(TRACEPARENT) or stream.base.headers.get(TRACEPARENT)
            if trace is not None and is_traceparent(trace):
                peer.machine.answer(stream, TRACED, parts, size, trace.encode())
            else:
                peer.machine.answer(stream, PLAIN, parts, size)
        return True

    def _known_parts(self, model: ServedModel, outputs: Mapping[str, Array]) -> dict[tuple[int, int], _Parts]:
        signature = [(name, array.dtype, array.shape[1:]) for name, array in outputs.items()]
        key = (model.name, model.version, *signature)
        known = self._parts.get(key)
        if known is None:
            if len(self._parts) >= MAX_KNOWN:
                self._parts.clear()
            known = self._parts[key] = {}
        return known

    def _answers(
        self, group: _Group, outputs: Mapping[str, Array], known: dict[tuple[int, int], _Parts]
    ) -> list[tuple[int, tuple[bytes, ...]]] | None:
        """The framed message of each member, in parts; None if the whole encoder must make them."""
        model = group.model
        if any(array.ndim == 0 or len(array) < group.total for array in outputs.values()):
            return None
        columns = [(array.tobytes(), array.nbytes // len(array)) for array in outputs.values()]
        answers: list[tuple[int, tuple[bytes, ...]]] = []
        at = 0
        for (_, _, _, _, text), rows in zip(group.members, group.rows, strict=True):
            request_id = text.encode()
            around = known.get((rows, len(request_id)))
            if around is None:
                mine = {name: array[:rows] for name, array in outputs.items()}
                around = self._codec.answer_parts(model.name, model.version, mine, len(request_id))
                if around is None:
                    return None
                if len(known) >= MAX_KNOWN:
                    known.clear()
                known[(rows, len(request_id))] = around
            size, pieces = around
            end = at + rows
            if len(columns) == 1:  # most models
                raw, row = columns[0]
                answers.append((size, (pieces[0], request_id, pieces[1], raw[at * row : end * row])))
            else:
                parts = [pieces[0], request_id]
                for piece, (raw, row) in zip(pieces[1:], columns, strict=True):
                    parts += (piece, raw[at * row : end * row])
                answers.append((size, tuple(parts)))
            at = end
        return answers

    def _tell(
        self, group: _Group, inputs: Mapping[str, Array], outputs: Mapping[str, Array], came_s: list[float]
    ) -> None:
        if not self._service.has_taps:
            return
        now_s, total = self._clock.monotonic_s(), group.total
        self._service.tell_event(
            TapEvent(
                group.kind.model,
                group.model.version,
                [request_id for *_, request_id in group.members],
                [now_s - each for each in came_s],
                OK,
                {name: array[:total] for name, array in inputs.items()},
                {name: array[:total] for name, array in outputs.items()},
            )
        )


def _joined(group: _Group, bucket: int) -> dict[str, Array]:
    """The inputs of all members, one after the other along the first axis, then copies of the last row."""
    inputs: dict[str, Array] = {}
    for place, each in enumerate(group.kind.inputs):
        parts = []
        for _, _, body, layout, _ in group.members:
            start, end = layout.raws[place]
            parts.append(body[start:end])
        if bucket > group.total:
            parts.append(parts[-1][-each.row_bytes :] * (bucket - group.total))
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        inputs[each.name] = np.frombuffer(joined, each.dtype).reshape((bucket, *each.row_shape))
    return inputs
