"""The least that can serve one model from Python: octets counted, the model run on a thread, an answer of fixed octets.

It reads no frame and no message: so many octets are a greeting, so many are a call, and every call is answered with
what the model makes of ones. What it costs above a loop of runs is asyncio, the kernel, the hop to the thread and back,
and the cold caches after each wait; what ours costs above it is the protocol.
`python -m benchmarks.peers.least FOLDER MODEL OCTETS_OF_GREETING OCTETS_OF_CALL`.
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading

import numpy as np
from benchmarks.in_process import bare
from benchmarks.peers.models import say
from benchmarks.serving_models import MODELS, input_shape

from holdfast.serving.http2 import frames

ROOM_BYTES = 262_144
FRAME_BYTES = 16_384
ACK_BYTES = 9  # of our settings, which comes behind the greeting
WIDE = 2**31 - 70_000  # a window that never ends
HEAD = b"\x88\x5f\x10application/grpc"  # RFC 7541: status 200, content-type
TRAILERS = b"\x00\x0bgrpc-status\x010"

Jobs = queue.SimpleQueue[tuple["Least", int]]  # streams whose call is whole


class Least(asyncio.BufferedProtocol):
    """A connection."""

    transport: asyncio.Transport

    def __init__(self, jobs: Jobs, greeting_bytes: int, call_bytes: int) -> None:
        self._jobs, self._call_bytes = jobs, call_bytes
        self._room = memoryview(bytearray(ROOM_BYTES))
        self._got, self._stream = -greeting_bytes - ACK_BYTES, 1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        mine = {frames.Setting.INITIAL_WINDOW_SIZE: WIDE, frames.Setting.MAX_FRAME_SIZE: ROOM_BYTES}
        transport.write(frames.settings(mine) + frames.window_update(0, WIDE))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        was_greeted, self._got = self._got >= 0, self._got + nbytes
        if not was_greeted and self._got >= 0:
            self.answer(1, b"")
        while self._got >= self._call_bytes:
            self._got -= self._call_bytes
            self._stream += 2
            self._jobs.put((self, self._stream))

    def answer(self, stream_id: int, raw: bytes) -> None:
        """A whole answer, and the octets of a call back to the window."""
        body = bytes(5) + raw
        out = [frames.window_update(0, self._call_bytes)]
        out.append(frames.frame(frames.HEADERS, frames.END_HEADERS, stream_id, HEAD))
        for at in range(0, len(body), FRAME_BYTES):
            out.append(frames.frame(frames.DATA, 0, stream_id, body[at : at + FRAME_BYTES]))
        ended = frames.END_HEADERS | frames.END_STREAM
        out.append(frames.frame(frames.HEADERS, ended, stream_id, TRAILERS))
        self.transport.write(b"".join(out))


def work(model: str, jobs: Jobs, loop: asyncio.AbstractEventLoop) -> None:
    """Run the model for every call, on a thread of its own."""
    session, ones = bare(MODELS[model]()), np.ones((1, *input_shape(model)), dtype=np.float32)
    while True:
        connection, stream_id = jobs.get()
        raw = session.run(None, {"x": ones})[0].tobytes()
        loop.call_soon_threadsafe(connection.answer, stream_id, raw)


async def main() -> None:
    model, greeting_bytes, call_bytes = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    jobs: Jobs = queue.SimpleQueue()
    loop = asyncio.get_running_loop()
    threading.Thread(target=work, args=(model, jobs, loop), daemon=True).start()
    server = await loop.create_server(lambda: Least(jobs, greeting_bytes, call_bytes), "127.0.0.1", 0)
    say(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
