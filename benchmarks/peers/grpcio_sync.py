"""grpcio with its threads: `python -m benchmarks.peers.grpcio_sync FOLDER`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from benchmarks.peers.grpcio_messages import METHOD, infer
from benchmarks.peers.models import models_of_command_line, say

THREADS = 8


class Calls(grpc.GenericRpcHandler):
    def __init__(self) -> None:
        models = models_of_command_line()
        self._handler = grpc.unary_unary_rpc_method_handler(lambda data, _: infer(models, data))

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handler if details.method == METHOD else None


def main() -> None:
    server = grpc.server(ThreadPoolExecutor(THREADS))
    server.add_generic_rpc_handlers((Calls(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    say(f"127.0.0.1:{port}")
    sys.stdin.read()
    server.stop(0.0)


if __name__ == "__main__":
    main()
