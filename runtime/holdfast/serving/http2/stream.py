"""One stream of a connection, and the events that its frames become."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum

from holdfast.serving.http2.shapes import RequestHead, Varied

Queued = tuple[bytes | memoryview, bool, bool]  # a header block or data, whether it is a block, whether it is the last


class Kind(IntEnum):
    """What happened."""

    BEGUN = 0  # a head; its body is still to come
    DATA = 1  # a piece of the body; a view is valid until the next call of the connection
    ENDED = 2  # the body is complete
    WHOLE = 3  # head and complete body in one; no other event comes before or after
    DROPPED = 4  # the stream is gone before it was answered: stop working on it


class Stream:
    """A request and its answer. `shape` and `values`: its head, in what it shares with others, and what varies.

    `place`: where its owner wants the rest of a large body, of which `filled` octets are there; None until it says so.
    """

    __slots__ = (
        "_head",
        "begun_at",
        "begun_turn",
        "filled",
        "id",
        "length_left",
        "local_ended",
        "place",
        "queue",
        "recv_window",
        "remote_ended",
        "send_window",
        "shape",
        "values",
    )

    def __init__(self, stream_id: int, varied: Varied, recv_window: int, send_window: int) -> None:
        self.id = stream_id
        self.shape, self.values = varied
        self._head: RequestHead | None = None
        self.recv_window = recv_window
        self.send_window = send_window
        self.remote_ended = False
        self.local_ended = False
        self.length_left = self.shape.base.content_length
        self.queue: deque[Queued] | None = None
        self.place: memoryview | None = None
        self.filled = 0
        self.begun_turn = self.begun_at = -1  # where its Kind.BEGUN stands, for as long as it may become Kind.WHOLE

    @property
    def head(self) -> RequestHead:
        """The whole head. Made when it is first asked for: a call that is answered quickly does without."""
        if self._head is None:
            shape, values = self.shape, (value.decode("latin-1") for value in self.values)
            self._head = (
                shape.base.with_more(dict(zip(shape.names, values, strict=True))) if shape.names else shape.base
            )
        return self._head


Event = tuple[Kind, Stream, "bytes | memoryview"]
Handler = Callable[[int, int, "bytes | memoryview", "list[Event]"], None]  # of a frame: flags, stream, payload


class HeaderBlock:
    """A header block that comes in several frames."""

    __slots__ = ("is_end", "parts", "size", "stream_id")

    def __init__(self, stream_id: int, *, is_end: bool) -> None:
        self.stream_id = stream_id
        self.is_end = is_end
        self.parts: list[bytes] = []
        self.size = 0
