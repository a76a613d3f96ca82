"""One accepted connection: told apart by its first bytes, then handed to the machine of its protocol.

Rules: all on the loop's thread; a peer that is silent, slow, or takes nothing of its answers is closed by `check`,
which the front calls about once a second.

Why octets are read into memory of ours: for a protocol that is handed them, asyncio takes 256 KiB from the system for
every read and gives back what was not used, which cost a tiny request three system calls and a page fault.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from typing import cast

from holdfast.serving.http2.frames import PREFACE
from holdfast.serving.native.backend import Backend, PeerFacts
from holdfast.serving.native.http1_peer import Http1Peer
from holdfast.serving.native.http2_peer import Http2Peer
from holdfast.serving.native.tls import spiffe_id_of
from holdfast.serving.refusals import CONNECTION, SILENT, UNTAKEN

logger = logging.getLogger(__name__)

RESET_AT_CLOSE = struct.pack("ii", 1, 0)  # linger, for no time: socket(7)
LARGE_BYTES = 32_768  # of a read, in which a large tensor may be
WRITE_BUFFER_BYTES = 1_048_576  # above it no more DATA is framed until the kernel has taken some


class NativeConnection(asyncio.BufferedProtocol):
    """The transport's side of a peer. `room`: where reads put octets; all connections share it."""

    transport: asyncio.Transport

    def __init__(
        self, backend: Backend, facts: PeerFacts, ended: Callable[[NativeConnection], None], room: memoryview
    ) -> None:
        self._backend = backend
        self._room = room
        self._facts = facts
        self._ended = ended
        self._first = b""
        self._peer: Http1Peer | Http2Peer | None = None
        self._begun_s = backend.clock.monotonic_s()
        self._paused_s: float | None = None
        self._is_closing = self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has its methods and not its class
        self.is_open = True
        self.transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
        tls = transport.get_extra_info("ssl_object")
        if tls is not None:
            facts = self._facts
            self._facts = PeerFacts(facts.peer, facts.is_admin, facts.is_local, spiffe_id_of(tls.getpeercert()))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        peer, tick = self._peer, self._backend.tick
        is_alone = tick.begin_read(peer)
        try:
            if nbytes >= LARGE_BYTES and peer is not None and not self._is_closing:
                peer.receive_large(self._room[:nbytes])
            else:
                self.receive(bytes(self._room[:nbytes]))
        finally:
            if is_alone:
                tick.end_read()

    def receive(self, data: bytes) -> None:
        """Octets from the peer."""
        if self._peer is None:
            self._first += data
            if len(self._first) < len(PREFACE) and PREFACE.startswith(self._first):
                return
            data, self._first = self._first, b""
            self._peer = self._peer_for(data)
        if not self._is_closing:
            self._peer.receive(data)

    def eof_received(self) -> bool:
        if self._peer is None:
            return False
        waits = self._peer.eof()
        # a TLS connection cannot stay half open
        return waits and self.transport.get_extra_info("ssl_object") is None

    def pause_writing(self) -> None:
        self._paused_s = self._backend.clock.monotonic_s()
        if self._peer is not None:
            self._peer.pause()

    def resume_writing(self) -> None:
        self._paused_s = None
        if self._peer is not None:
            self._peer.resume()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_closing, self.is_open = True, False
        if self._peer is not None:
            self._peer.lost()
            self._backend.tick.forget(self._peer)
            self._peer = None
        self._ended(self)

    def write(self, data: bytes) -> None:
        """Send, or keep until it can be sent."""
        if not self._is_closing:
            self.transport.write(data)

    def close(self) -> None:
        """Close when everything is sent; what the peer still sends is not looked at."""
        if not self._is_closing:
            self._is_closing = True
            self._paused_s = self._backend.clock.monotonic_s()  # from here the stalled timeout counts
            self.transport.close()

    def pause_reading(self) -> None:
        """Read no more for now."""
        self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._is_closing:
            self.transport.resume_reading()

    def drain(self) -> None:
        """End after what is under way."""
        if self._peer is None:
            self.close()
        else:
            self._peer.drain()

    def check(self, now_s: float) -> None:
        """Close if the peer took too long."""
        options = self._backend.options
        if self._paused_s is not None and now_s - self._paused_s > options.stalled_timeout_s:
            overdue = True
        elif self._peer is None:
            overdue = now_s - self._begun_s > options.first_bytes_timeout_s
        else:
            overdue = not self._is_closing and self._peer.is_overdue(now_s)
        if overdue:
            if self._paused_s is not None or not isinstance(self._peer, Http1Peer):  # whose silence between requests is
                self._backend.service.refusals.count(CONNECTION, SILENT)  # no fault
            self._reset()

    @property
    def untaken_bytes(self) -> int:
        """Of answers that wait for the peer."""
        return self.transport.get_write_buffer_size() + (0 if self._peer is None else self._peer.untaken_bytes)

    @property
    def taken_s(self) -> float:
        """When the peer took something last, as far as it matters: now, where nothing keeps us from writing."""
        since_s = self._backend.clock.monotonic_s() if self._paused_s is None else self._paused_s
        return min(since_s, self._peer.taken_s) if isinstance(self._peer, Http2Peer) else since_s

    def let_go(self) -> None:
        """End at once: too many answers wait, and its own among the longest."""
        self._backend.service.refusals.count(CONNECTION, UNTAKEN)
        self._reset()

    def _reset(self) -> None:
        # a reset: else the kernel keeps what the peer does not take, and goes on offering it for minutes
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_AT_CLOSE)
        self.transport.abort()

    def _peer_for(self, first: bytes) -> Http1Peer | Http2Peer:
        if first.startswith(PREFACE):
            return Http2Peer(self._backend, self, self._facts, self._begun_s)
        return Http1Peer(self._backend, self, self._facts, self._begun_s)
