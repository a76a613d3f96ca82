"""The least that one can write on uvicorn: an ASGI function, bytes in, bytes out, on httptools and uvloop."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import uvicorn
from benchmarks.peers.models import free_port, models_of_command_line, say_when_open

MODELS = models_of_command_line()
WIDTHS = {name: MODELS.width(name) for name in MODELS.names()}


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message["body"], message.get("more_body", False)
    name = scope["path"][1:]
    y = MODELS.predict(name, np.frombuffer(body, dtype=np.float32).reshape(-1, WIDTHS[name])).tobytes()
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(y)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": y})


if __name__ == "__main__":
    port = free_port()
    say_when_open(port)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        log_level="error",
        access_log=False,
        lifespan="off",
    )
