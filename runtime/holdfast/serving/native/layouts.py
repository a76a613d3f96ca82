"""Where things stand in plain requests, whatever they came by, and what requests that may share a run have in common.

Rules: values only; whoever reads requests makes them, and whoever runs them notes what was found out. Compared by
identity where it says so: there is one object of each.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from holdfast.inference.tensors import Array


@dataclass(frozen=True, slots=True)
class InputKind:
    """One input as its model declares it, and one row of it: all axes but the first, and its octets."""

    name: str
    dtype: np.dtype[np.generic]
    row_shape: tuple[int, ...]
    row_bytes: int


@dataclass(slots=True, eq=False)
class RequestKind:
    """What requests that could share a run have in common. `is_plain`: until one is found that needs the whole way.

    fits: the number of the session that takes them, as far as it was asked; 0 before.
    """

    model: str
    version: str
    inputs: tuple[InputKind, ...]
    outputs: tuple[str, ...]
    is_plain: bool = True
    fits: int = 0


@dataclass(slots=True, eq=False)
class Fit:
    """Requests of one layout that run alone fit a session, found out by one of them.

    number: of the session. alone_s: what a run takes. rows: what it is counted as.
    """

    number: int
    alone_s: float
    rows: int


AnswerParts = tuple[int, tuple[bytes, ...]]  # octets of the framed message; what stands before the id, and each raw
OutputKinds = tuple[tuple[str, np.dtype[np.generic], tuple[int, ...]], ...]  # name, dtype, shape of a row


@dataclass(frozen=True, slots=True, eq=False)
class OutputsForm:
    """A model version and its outputs. There is one object of each: by that they are compared."""

    model: str
    version: str
    outputs: OutputKinds


@dataclass(slots=True, eq=False)
class Layout:
    """Where things stand in the messages of one length, counted from the prefix that gRPC puts before them.

    rows: along the first axis of every input; 0 if they differ or there is none.
    start: what stands before the id, if that is more than all messages alike begin with.
    raws: (start, end) of each input's contents. between: what stands between one and the next, by its place.
    answer: what stands around the answer, and for which form of answers that was found out; the lane's to write.
    wants_json: whether the tensors of the answer go out as JSON; over HTTP.
    fit: whose these messages are when they run alone; for whoever runs them to write.
    """

    kind: RequestKind
    shapes: tuple[tuple[int, ...], ...]
    rows: int
    start: bytes
    id_start: int
    id_end: int
    middle: bytes
    raws: tuple[tuple[int, int], ...]
    between: tuple[tuple[int, bytes], ...]
    answer: tuple[OutputsForm, AnswerParts] | None = None
    wants_json: bool = False
    fit: Fit | None = None


def arrays_in(data: bytes | bytearray | memoryview, layout: Layout) -> dict[str, Array]:
    """The inputs of a message with this layout; views of it."""
    return {
        each.name: np.frombuffer(data, each.dtype, (end - start) // each.dtype.itemsize, start).reshape(shape)
        for each, shape, (start, end) in zip(layout.kind.inputs, layout.shapes, layout.raws, strict=True)
    }
