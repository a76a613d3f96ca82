"""What TLS costs the server: the same request over and over, 32 streams on one connection, without TLS and with it.

TLS 1.3 with a P-256 certificate, h2load on both sides; the handshake is one of many thousand requests. The aim: a
quarter more CPU at most.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from benchmarks.h2load import H2LOAD, h2loaded
from benchmarks.harness import NotRun, Options, Outcome, compare
from benchmarks.serving_models import repository
from benchmarks.serving_subjects import holdfast
from tests.fakes.tls_site import Site

ROUNDS = 15


def run(options: Options) -> list[Outcome]:
    if H2LOAD is None:
        return [NotRun("serving/tls", "h2load (nghttp2-client) is not installed")]
    with ExitStack() as stack:
        site = Site(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        folder = stack.enter_context(repository(("tiny0",)))
        flags = ("--tls-certificate", str(site.folder / "server.pem"), "--tls-key", str(site.folder / "server.key"))
        plain, tls = stack.enter_context(holdfast(folder)), stack.enter_context(holdfast(folder, *flags))
        a, b = h2loaded(plain, options), h2loaded(tls, options, scheme="https")
        rounds = 1 if options.quick else ROUNDS
        return compare("serving/tls", ("plain, 32 streams", a), ("TLS, 32 streams", b), rounds)
