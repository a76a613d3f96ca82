"""Bounds of one HTTP/2 connection, and the memory they add up to.

Rules: every bound has a reason beside it; `Http2Limits.memory_bytes` is what one peer can make us hold, and a test
drives a connection against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FRAME_HEADER_BYTES: Final = 9
DEFAULT_WINDOW_BYTES: Final = 65_535  # RFC 9113 6.9.2
MAX_WINDOW_BYTES: Final = 2**31 - 1
DEFAULT_FRAME_BYTES: Final = 16_384  # RFC 9113 4.2
MAX_FRAME_BYTES: Final = 2**24 - 1
MAX_SENT_FRAME_BYTES: Final = 65_536  # ours, also where the peer would take more: answers of one turn are not held back
DEFAULT_TABLE_BYTES: Final = 4_096  # RFC 7541 4.2, RFC 9113 6.5.2
MAX_KNOWN_HEADS: Final = 64  # remembered per connection; one client uses a handful
OBJECT_BYTES: Final = 2_048  # a stream's own objects, generously


@dataclass(frozen=True, slots=True)
class Rate:
    """A token bucket: `burst` at once, then `per_second`."""

    burst: float
    per_second: float


@dataclass(frozen=True, slots=True)
class PingRules:
    """How often a client may send PING with nothing of ours between (gRFC A8); the defaults are gRPC's own.

    A PING is on time after `min_interval_s`, or `min_idle_interval_s` where no stream is open. `max_strikes` earlier
    ones are forgiven, the next ends the connection; 0 = all are.
    """

    min_interval_s: float = 300.0
    min_idle_interval_s: float = 7_200.0
    max_strikes: int = 2


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What one connection may use."""

    max_streams: int = 128  # concurrent; gRPC clients queue above it
    stream_window_bytes: int = 262_144  # received on one stream before its owner grants more
    connection_window_bytes: int = 8_388_608  # in flight, not held: what arrives is handed over or thrown away
    max_frame_bytes: int = 262_144  # a stream's window: a large tensor comes in 3 frames of gRPC's C core, not in 38
    header_table_bytes: int = DEFAULT_TABLE_BYTES
    max_header_list_bytes: int = 16_384  # the size gRPC implementations take for metadata is 8 KiB
    max_header_block_bytes: int = 32_768  # encoded: with what is refused in the list, but must pass the table
    max_continuations: int = 16  # the block above in frames of 2 KiB
    max_settings: int = 64  # entries of one SETTINGS frame; 7 are known
    max_unsent_bytes: int = 134_217_728  # answers the peer does not take, unless one alone is larger
    resets: Rate = Rate(200, 33)  # streams cancelled by the peer, CVE-2023-44487; nghttp2 allows 33 a second
    controls: Rate = Rate(1_000, 200)  # PING, SETTINGS, PRIORITY, empty DATA, WINDOW_UPDATE beyond need, unknown frames
    faults: Rate = Rate(1_000, 33)  # streams refused or faulty; before our settings arrive a client may open hundreds
    pings: PingRules = PingRules()

    @property
    def memory_bytes(self) -> int:
        """What a peer can make a connection hold, besides messages its owner granted windows for.

        Stream windows and heads, one frame and one header block being put together, the header table (its entries as
        text), heads remembered, answers of one turn, and answers the peer does not take (or one, where it alone is
        larger).
        """
        heads = 2 * MAX_KNOWN_HEADS * self.max_header_list_bytes  # whole ones, and those without what varies
        parts = (
            heads
            + self.max_frame_bytes
            + FRAME_HEADER_BYTES
            + self.max_header_block_bytes
            + 4 * self.header_table_bytes
        )
        stream = self.stream_window_bytes + self.max_header_list_bytes + OBJECT_BYTES + MAX_SENT_FRAME_BYTES
        streams = self.max_streams * stream
        return streams + parts + self.max_unsent_bytes


class Bucket:
    """The state of one Rate."""

    __slots__ = ("_left", "_rate", "_seen_s")

    def __init__(self, rate: Rate, now_s: float) -> None:
        self._rate = rate
        self._left = rate.burst
        self._seen_s = now_s

    def take(self, now_s: float, cost: float = 1.0) -> bool:
        """Whether the cost was still in the bucket."""
        if now_s > self._seen_s:
            self._left = min(self._rate.burst, self._left + (now_s - self._seen_s) * self._rate.per_second)
            self._seen_s = now_s
        self._left -= cost
        return self._left >= 0

    def give(self, count: int) -> None:
        """Useful work earns as many back."""
        self._left = min(self._rate.burst, self._left + count)
