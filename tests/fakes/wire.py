"""A connection's transport that keeps what is written."""

from __future__ import annotations


class Wire:
    """A link without a socket."""

    def __init__(self) -> None:
        self.data = b""
        self.is_closed = self.is_held = False

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.is_closed = True

    def pause_reading(self) -> None:
        self.is_held = True

    def resume_reading(self) -> None:
        self.is_held = False
