"""`holdfast bench`: what a model costs on this machine, and what a running server adds."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import UsageError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL.onnx", help="the model to measure")
    parser.add_argument(
        "--against", metavar="HOST:PORT", help="also measure a running server of the same model, over gRPC"
    )
    parser.add_argument("--name", help="the model's name on that server (default: the file's stem)")
    parser.add_argument("--seconds", type=float, default=5.0, help="time to measure warm calls (default %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads inside one run of the model (default %(default)s)"
    )
    parser.add_argument("--spinning", action="store_true", help="let idle threads spin")
    parser.add_argument("--seed", type=int, default=0, help="of the made-up inputs (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.bench.result import BenchOptions, run_bench, summary_lines
    from holdfast.clock import SystemClock
    from holdfast.serving.server import Address

    if not 0 < arguments.seconds <= 3600 or not 1 <= arguments.threads <= 1024 or arguments.seed < 0:
        raise UsageError("expected --seconds above 0 and up to 3600, --threads from 1 to 1024, --seed from 0")
    options = BenchOptions(
        seconds=arguments.seconds,
        threads=arguments.threads,
        spinning=arguments.spinning,
        seed=arguments.seed,
        against=None if arguments.against is None else Address.parse(arguments.against),
        name=arguments.name or arguments.model.stem,
    )
    print(f"measuring {arguments.model}: trial, cold starts, then {options.seconds:g} s of calls ...", file=sys.stderr)
    result = run_bench(arguments.model, options, SystemClock())
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(summary_lines(result)))
    return EXIT_OK


BENCH = Command(
    help="measure a model: cold start, latency, and a running server beside it",
    add_arguments=_arguments,
    run=_run,
    description="""Measure an ONNX file on this machine: cold start in fresh processes, latency of warm calls,
and how quiet the machine was meanwhile.

  holdfast bench model.onnx
  holdfast bench model.onnx --json > before.json
  holdfast bench model.onnx --against 127.0.0.1:8080     beside a server started with: holdfast serve model.onnx""",
)
