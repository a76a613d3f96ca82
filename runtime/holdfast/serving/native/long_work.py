"""Work on the body of a request that may take long: expanding what is compressed, reading much JSON.

Rules: a worker does it, one of few, once there is room for what comes out in the server's budget; what is surely short
is done at once. Why: 65 kB can say 64 MiB of zeros, which take a quarter of a second of everybody's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from holdfast.serving.native.backend import Backend
from holdfast.serving.native.budget import Reservation

PACKED_BYTES: Final = 1_024  # of a compressed body, expanded at once: at most a megabyte, in some milliseconds
MAX_GROWTH: Final = 1_032  # octets that one of deflate becomes at most (zlib's technical details)
PARSED_BYTES: Final = 131_072  # of JSON, or of a message that is no raw tensors: up to there it is parsed at once
PARSED_GROWTH: Final = 16  # octets that one of those becomes on its way to an array, about

T = TypeVar("T")


class LongWork(Generic[T]):
    """Calls `done` with what `work` makes, or with what it raised; on the loop's thread, at once or later.

    `dropped` means that nobody waits for it any more: `done` stays out then.
    """

    __slots__ = ("_backend", "_done", "_is_over", "_is_running", "_room", "_work")

    def __init__(self, backend: Backend, work: Callable[[], T], done: Callable[[T | Exception], None]) -> None:
        self._backend = backend
        self._work = work
        self._done = done
        self._room: Reservation | None = None
        self._is_running = self._is_over = False

    def start(self, room_bytes: int) -> None:
        """Begin, once; at once if it wants no room."""
        if room_bytes:
            most = min(room_bytes, self._backend.options.max_message_bytes)
            self._room = self._backend.budget.reserve(most, self._granted)
        else:
            self._finish(self._tried())

    def dropped(self) -> None:
        """Nobody waits for it any more."""
        self._is_over = True
        if self._room is not None and not self._is_running:
            self._room.release()

    def _granted(self) -> None:
        self._is_running = True
        self._backend.executor.submit(self._elsewhere)

    def _elsewhere(self) -> None:
        result = None if self._is_over else self._tried()
        self._backend.tick.post(lambda: self._finish(result))

    def _tried(self) -> T | Exception:
        try:
            return self._work()
        except Exception as error:  # noqa: BLE001  # the rpc edge, on the loop's thread
            return error

    def _finish(self, result: T | Exception | None) -> None:
        try:
            if not self._is_over and result is not None:
                self._is_over = True
                self._done(result)
        finally:
            if self._room is not None:
                self._room.release()


def packed_room(size: int) -> int:
    """What a compressed body of `size` octets wants; nothing if it is short."""
    return 0 if size <= PACKED_BYTES else size * MAX_GROWTH


def parsed_room(size: int) -> int:
    """What so much JSON, or such a message, wants; nothing if it is short."""
    return 0 if size <= PARSED_BYTES else size * PARSED_GROWTH
