"""The server of the soak: `python -m tests.conformance.soak_server FOLDER`, told what to do on its standard input.

It serves one pool plain and over TLS. First line out: the two addresses and the authority's file, as JSON. For each
line in ("swap" or "count") one line of JSON comes out, with what is held at that moment.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
from pathlib import Path

from tests.fakes import served_models as models
from tests.fakes.serving import pool_of
from tests.fakes.tls_site import Site

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.serving.native.tls import TlsFiles
from holdfast.serving.server import Address, Server, ServerOptions


def server_of(pool: ModelPool, tls: TlsFiles | None) -> Server:
    return Server(pool, options=ServerOptions(Address("127.0.0.1", 0), tls=tls, max_connections=1_024))


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def held(servers: list[Server]) -> dict[str, int]:
    gc.collect()
    fronts = [server._native for server in servers]
    assert all(fronts)
    return {
        "rss_bytes": rss_bytes(),
        "files": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "connections": sum(front.open_connections for front in fronts),
        "tasks": sum(len(asyncio.all_tasks(front._loop)) for front in fronts),
        "requests": sum(front._backend.in_flight.count for front in fronts),
        "long_calls": sum(front._backend.long_calls.count for front in fronts),
        "budget_taken": sum(front._options.large_bytes - front._backend.budget.left for front in fronts),
    }


def main() -> None:
    site = Site(Path(sys.argv[1]))
    pool = pool_of({"slow": models.hangs_at_first_run(), "large": models.identity()})
    sessions = [prepare_session(ModelSource(models.scale(2.0))) for _ in range(2)]
    pool.swap("m", "1", sessions[0])
    servers = [server_of(pool, None), server_of(pool, site.files(mutual=False))]
    addresses = [str(server.start()) for server in servers]
    print(json.dumps({"plain": addresses[0], "tls": addresses[1], "ca": str(site.folder / "ca.pem")}), flush=True)
    swaps = 0
    for line in sys.stdin:
        if line.strip() == "swap":
            swaps += 1
            # two versions in turn: of those that are gone the counters are kept, for a thousand of them
            pool.swap("m", str(1 + swaps % 2), prepare_session(ModelSource(models.scale(2.0))))
        print(json.dumps({**held(servers), "swaps": swaps}), flush=True)
    for server in servers:
        server.stop(2.0)


if __name__ == "__main__":
    main()
