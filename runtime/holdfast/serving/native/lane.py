"""Plain inference calls that came in one turn of the loop, from octets to octets: one run for all that fit together.

Rules: only calls that need no decision go here: a known layout, a model that is quick and whose rows may share a run,
nothing waiting in front of them, time left. Every other call goes the whole way (`Caller.infer`), where it gets the
same answer or the reason why not. What was asked is never kept: the same bytes twice are computed twice.

Why: 32 calls that each become a request object, arrays, a queue entry, a response and a message cost 25 us apiece;
cut out of the octets, joined, run and cut apart together they cost 5.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

import numpy as np

from holdfast.clock import Clock
from holdfast.inference.pool import ServedModel
from holdfast.inference.tensors import Array
from holdfast.serving.http2.stream import Stream
from holdfast.serving.native.call_notes import Note, Timeouts
from holdfast.serving.native.codec import InferCodec
from holdfast.serving.native.http_codec import HttpCalls
from holdfast.serving.native.layouts import AnswerParts, Layout, OutputKinds, OutputsForm, RequestKind
from holdfast.serving.protocols import OK, QuickRuns, TapEvent
from holdfast.serving.service import InferenceService
from holdfast.serving.shared_memory import SharedMemory

MAX_FORMS: Final = 256  # of answers, that are remembered


class Caller(ABC):
    """A connection that calls came by. `seen_s`: when the turn's octets came. `regions`: that it may use."""

    def __init__(self, regions: SharedMemory | None, now_s: float) -> None:
        self.regions = regions
        self.seen_s = now_s

    @abstractmethod
    def infer(self, stream: Stream, body: bytes | bytearray | memoryview) -> None:
        """Take a call the whole way."""

    @abstractmethod
    def answer(self, stream: Stream, note: Note, layout: Layout | None, parts: tuple[bytes, ...], size: int) -> None:
        """Answer a call, of a layout if it has one, with a whole message of `size` octets."""

    @abstractmethod
    def fail(self, stream: Stream | None, error: BaseException) -> None:
        """Answer a call with what went wrong."""


Call = tuple[Caller, Stream, bytes, Note]
WholeCall = tuple[Caller, Stream, bytes | bytearray | memoryview, Note]
_Member = tuple[Caller, Stream, bytes, Note, Layout, str]


class _Group:
    """Calls that share a run; what is read for every one of them lies here ready."""

    __slots__ = ("alones_s", "came_s", "kind", "largest", "members", "model", "rows", "shares_s", "total")

    def __init__(self, kind: RequestKind, model: ServedModel) -> None:
        self.kind = kind
        self.model = model
        traits = model.session.traits
        self.largest = traits.mixing.buckets[-1]
        self.alones_s, self.shares_s = traits.alones_s, traits.shares_s
        self.members: list[_Member] = []
        self.came_s: list[float] = []
        self.rows: list[int] = []
        self.total = 0


class Next(Protocol):
    """Whoever is asked before a call goes the whole way."""

    def run(self, calls: Sequence[WholeCall], quick: QuickRuns) -> list[WholeCall]:
        """Answer some. Returns the others."""


class Lane:
    """Answers what came in one turn. On the loop's thread; `calls` and `large` are filled by the connections.

    `large`: calls that are too large for a joined run.
    """

    def __init__(self, codec: InferCodec, service: InferenceService, clock: Clock, max_calls: int) -> None:
        self.calls: list[Call] = []
        self.large: list[WholeCall] = []
        self._next: Next | None = None
        self._codec = codec
        self._quick: QuickRuns
        self._service = service
        self._clock = clock
        self._max_calls = max_calls
        self.timeouts = Timeouts()
        self._forms: dict[tuple[str, str, OutputKinds], OutputsForm] = {}

    def serve_with(self, quick: QuickRuns) -> None:
        """Who runs the models comes after us, because it wants the loop."""
        self._quick = quick

    def pass_to(self, following: Next) -> None:
        """Who gets what cannot share a run."""
        self._next = following

    def run(self, in_flight: int) -> None:
        """Answer all calls, or pass them on. `in_flight` others are under way."""
        calls, self.calls = self.calls, []
        places = max(0, self._max_calls - in_flight)
        over: list[WholeCall] = []
        if len(calls) > places:
            over += calls[places:]
            del calls[places:]
        groups, left = self._grouped(calls)
        for group in groups:
            try:
                is_answered = self._run(group)
            except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
                for peer, stream, *_ in group.members:
                    peer.fail(stream, error)
            else:
                if not is_answered:
                    left += [member[:4] for member in group.members]
        if left or self.large:
            self._pass_on(left, over, places - len(calls))
        for peer, stream, body, _ in over:
            peer.infer(stream, body)

    def _pass_on(self, left: list[Call], over: list[WholeCall], places: int) -> None:
        """Offer what could not share a run, and large calls, to whoever is next; the rest goes to `over`."""
        large, self.large = self.large, []
        over += large[places:]
        offered: list[WholeCall] = [*left, *large[:places]]
        over += offered if self._next is None else self._next.run(offered, self._quick)

    def _grouped(self, calls: list[Call]) -> tuple[list[_Group], list[Call]]:
        """Calls that may run now, by the run they share; and the others."""
        now_s, codec, timeouts = self._clock.monotonic_s(), self._codec, self.timeouts
        left_s, limit_s = self._quick.turn_s, self._quick.inline_limit_s
        groups: list[_Group] = []
        left: list[Call] = []
        open_of: dict[RequestKind, _Group | None] = {}
        for call in calls:
            peer, stream, body, note = call
            found = codec.match(body, len(body)) if note.http is None else note.http.match(body, len(body))
            came_s = peer.seen_s
            if found is None or came_s + timeouts.allowed_s(stream, note) <= now_s:
                left.append(call)
                continue
            layout, request_id = found
            kind, rows = layout.kind, layout.rows
            try:
                group = open_of[kind]
            except KeyError:
                group = open_of[kind] = self._opened(kind)
            if group is None or left_s <= 0 or not 0 < rows <= group.largest or group.alones_s[rows] > limit_s:
                left.append(call)
                continue
            left_s -= group.shares_s[rows]
            if group.total + rows > group.largest:
                group = open_of[kind] = _Group(kind, group.model)
            if not group.members:
                groups.append(group)
            group.members.append((peer, stream, body, note, layout, request_id))
            group.came_s.append(came_s)
            group.rows.append(rows)
            group.total += rows
        return groups, left

    def _opened(self, kind: RequestKind) -> _Group | None:
        """A group for calls of this kind, if its model takes them now."""
        model = self._quick.find_quick(kind.model, kind.version) if kind.is_plain else None
        if model is None:
            return None
        session = model.session
        if kind.fits != session.number:
            if not session.shares([(each.name, each.dtype, each.row_shape) for each in kind.inputs]):
                return None
            if kind.outputs and not session.has_outputs(kind.outputs):
                return None
            kind.fits = session.number
        return _Group(kind, model)

    def _run(self, group: _Group) -> bool:
        """Answer the calls of a group. False, and none was answered, if they must go the whole way."""
        kind, model = group.kind, group.model
        bucket = model.session.traits.mixing.bucket_for(group.total)
        assert bucket is not None, "more rows in a run than were probed"
        inputs = _joined(group, bucket)
        outputs = self._quick.run_quick(model, inputs, kind.outputs, group.rows, group.came_s)
        if outputs is None:
            return False
        form = self._form(model, outputs, bucket)
        if form is None:
            kind.is_plain = False
            return False
        self._tell(group, inputs, outputs, bucket)
        columns = [(array.tobytes(), array.nbytes // bucket) for array in outputs.values()]
        at = 0
        for peer, stream, _, note, layout, text in group.members:
            known = layout.answer
            if known is None or known[0] is not form:
                known = self._learn(layout, note.http, form, outputs)
            size, pieces = known[1]
            request_id, end = text.encode(), at + layout.rows
            if len(columns) == 1:  # most models
                raw, row = columns[0]
                parts: tuple[bytes, ...] = (pieces[0], request_id, pieces[1], raw[at * row : end * row])
            else:
                parts = _woven(pieces, request_id, [raw[at * row : end * row] for raw, row in columns])
            at = end
            peer.answer(stream, note, layout, parts, size)
        return True

    def _form(self, model: ServedModel, outputs: Mapping[str, Array], bucket: int) -> OutputsForm | None:
        """Stands for a model version and the form of its outputs; None if the whole encoder must make such answers."""
        key = (model.name, model.version, tuple([(name, each.dtype, each.shape[1:]) for name, each in outputs.items()]))
        form = self._forms.get(key)
        if form is None:
            if any(array.ndim == 0 or len(array) != bucket for array in outputs.values()):
                return None
            mine = {name: array[:1] for name, array in outputs.items()}
            if self._codec.answer_parts(model.name, model.version, mine, 0) is None:
                return None
            if len(self._forms) >= MAX_FORMS:
                self._forms.clear()
            form = self._forms[key] = OutputsForm(*key)
        return form

    def _learn(
        self, layout: Layout, http: HttpCalls | None, form: OutputsForm, outputs: Mapping[str, Array]
    ) -> tuple[OutputsForm, AnswerParts]:
        """What stands around answers of this form to messages of this layout."""
        mine = {name: array[: layout.rows] for name, array in outputs.items()}
        if http is not None:
            parts: AnswerParts | None = http.codec.answer_parts(form.model, form.version, mine, layout)
        else:
            parts = self._codec.answer_parts(form.model, form.version, mine, layout.id_end - layout.id_start)
        assert parts is not None, "one row went out this way, but not several"
        layout.answer = known = (form, parts)
        return known

    def _tell(self, group: _Group, inputs: Mapping[str, Array], outputs: Mapping[str, Array], bucket: int) -> None:
        if not self._service.has_taps:
            return
        now_s, total = self._clock.monotonic_s(), group.total
        if total != bucket:  # without padding
            inputs = {name: array[:total] for name, array in inputs.items()}
            outputs = {name: array[:total] for name, array in outputs.items()}
        self._service.tell_event(
            TapEvent(
                group.kind.model,
                group.model.version,
                [request_id for *_, request_id in group.members],
                [now_s - each for each in group.came_s],
                OK,
                inputs,
                outputs,
            )
        )


def _joined(group: _Group, bucket: int) -> dict[str, Array]:
    """The inputs of all members, one after the other along the first axis, then copies of the last row."""
    inputs: dict[str, Array] = {}
    for place, each in enumerate(group.kind.inputs):
        parts = []
        for _, _, body, _, layout, _ in group.members:
            start, end = layout.raws[place]
            parts.append(body[start:end])
        if bucket > group.total:
            parts.append(parts[-1][-each.row_bytes :] * (bucket - group.total))
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        inputs[each.name] = np.frombuffer(joined, each.dtype).reshape((bucket, *each.row_shape))
    return inputs


def _woven(pieces: tuple[bytes, ...], request_id: bytes, raws: list[bytes]) -> tuple[bytes, ...]:
    """The parts of an answer with several outputs."""
    parts = [pieces[0], request_id]
    for piece, raw in zip(pieces[1:], raws, strict=True):
        parts += (piece, raw)
    return tuple(parts)
