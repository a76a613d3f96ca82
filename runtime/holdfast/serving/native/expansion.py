"""Compressed bodies of requests, made what they were where nobody waits for it.

Rules: what may grow large is expanded by a worker, one of few, and only once there is room for it in the server's
budget; what is small is expanded at once. Why: 65 kB can say 64 MiB of zeros, which take a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from holdfast.serving.native.backend import Backend
from holdfast.serving.native.budget import Reservation

AT_ONCE_BYTES: Final = 1_024  # of a compressed body: at most a megabyte comes out, in some milliseconds
MAX_GROWTH: Final = 1_032  # octets that one of deflate becomes at most (zlib's technical details)

Expanded = bytes | memoryview


class Expansion:
    """Calls `done` with what `expand` makes, or with what it raised; on the loop's thread, at once or later.

    Owns its stream meanwhile, if it has one: `dropped` means that nobody waits for it any more, and `done` stays out.
    """

    __slots__ = ("_backend", "_done", "_expand", "_is_over", "_is_running", "_room", "_size", "begun_s")

    def __init__(
        self,
        backend: Backend,
        size: int,
        expand: Callable[[], Expanded],
        done: Callable[[Expanded | Exception], None],
    ) -> None:
        """size: octets of the compressed body."""
        self.begun_s: float | None = None  # the body is whole
        self._backend = backend
        self._size = size
        self._expand = expand
        self._done = done
        self._room: Reservation | None = None
        self._is_running = self._is_over = False

    def start(self) -> None:
        """Begin. Once."""
        if self._size <= AT_ONCE_BYTES:
            self._finish(self._tried())
            return
        most = min(self._size * MAX_GROWTH, self._backend.options.max_message_bytes)
        self._room = self._backend.budget.reserve(most, self._granted)

    def data(self, piece: bytes | memoryview) -> None:
        """Nothing: the body is whole."""

    def ended(self) -> None:
        """Nothing: it was before."""

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

    def _tried(self) -> Expanded | Exception:
        try:
            return self._expand()
        except Exception as error:  # noqa: BLE001  # the rpc edge, on the loop's thread
            return error

    def _finish(self, result: Expanded | Exception | None) -> None:
        try:
            if not self._is_over and result is not None:
                self._is_over = True
                self._done(result)
        finally:
            if self._room is not None:
                self._room.release()
