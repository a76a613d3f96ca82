"""grpc.aio on the loop that comes with Python: `python -m benchmarks.peers.grpc_aio FOLDER`."""

from __future__ import annotations

import asyncio
import sys

import grpc
from benchmarks.peers.grpcio_messages import METHOD, infer
from benchmarks.peers.models import models_of_command_line, say


class Calls(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        models = models_of_command_line()

        async def answer(data: bytes, _: object) -> bytes:
            return infer(models, data)

        self._handler = grpc.unary_unary_rpc_method_handler(answer)

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handler if details.method == METHOD else None


async def main() -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Calls(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(f"127.0.0.1:{port}")
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0.0)


if __name__ == "__main__":
    asyncio.run(main())
