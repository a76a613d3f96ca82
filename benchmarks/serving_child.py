"""The server under measurement, in a process of its own: `python -m benchmarks.serving_child FRONT CORE`.

FRONT: `native`, `native-plain` (memory of heads off), `splice` (our grpcio fallback behind its splice) or `grpcio`
(grpc.server on the port itself, the same calls). Prints its address on one line and serves until its input ends.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc
from benchmarks.serving_models import MLP, TINY, perceptron

from holdfast.clock import SystemClock
from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.serving.grpcio_front import _Calls
from holdfast.serving.rpc import Origin
from holdfast.serving.server import Address, Server, ServerOptions


def main() -> None:
    front, core = sys.argv[1:]
    os.sched_setaffinity(0, {int(core)})
    pool = ModelPool()
    for name, sizes, seed in (("tiny0", TINY, 0), ("tiny1", TINY, 1), ("tiny2", TINY, 2), ("mlp", MLP, 3)):
        pool.swap(name, "1", prepare_session(ModelSource(perceptron(sizes, seed))))
    options = ServerOptions(
        Address("127.0.0.1", 0),
        front="native" if front.startswith("native") else "grpcio",
        memoise=front != "native-plain",
    )
    server = Server(pool, options=options)
    if front == "grpcio":
        plain = grpc.server(ThreadPoolExecutor(8))
        plain.add_generic_rpc_handlers((_Calls(server._table, SystemClock(), Origin()),))
        port = plain.add_insecure_port("127.0.0.1:0")
        plain.start()
        print(f"127.0.0.1:{port}", flush=True)
        sys.stdin.read()
        plain.stop(0.0)
        return
    print(server.start(), flush=True)
    sys.stdin.read()
    server.stop(1.0)


if __name__ == "__main__":
    main()
