"""Runs the benchmarks: `python -m benchmarks.run [--quick] [--publish] [NAME...]`, or `make bench`.

Every run leaves a JSON file per benchmark under `results/`. `--publish` also puts the figures into the committed
summary and writes the table in the README from it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from benchmarks.harness import NotRun, Options, Outcome, environment, publish, show, store

NAMES = (
    "serving",
    "serving_native",
    "serving_throughput",
    "serving_deep",
    "serving_tensors",
    "serving_tls",
    "serving_clients",
    "serving_compiled",
    "serving_device",
    "serving_peers",
    "scheduler",
    "outbox",
    "reports",
    "sketch",
    "training",
    "bundle",
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of: {', '.join(NAMES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="see that everything runs; the figures are worth nothing")
    parser.add_argument("--publish", action="store_true", help="put the figures into the committed summary and README")
    arguments = parser.parse_args(argv)
    unknown = [name for name in arguments.names if name not in NAMES]
    if unknown or (arguments.quick and arguments.publish):
        parser.error(f"unknown: {', '.join(unknown)}" if unknown else "figures of --quick are not for publishing")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # as our own processes do: loops and peers beside us, too
    options = Options(quick=arguments.quick)
    results = {}
    for name in arguments.names or NAMES:
        print(f"{name} ...", flush=True)
        stamp = environment()
        outcomes = run_one(name, options)
        print("\n".join(map(show, outcomes)))
        print(f"  stored in {store(name, outcomes, stamp, options)}", flush=True)
        results[name] = (outcomes, stamp)
    if arguments.publish:
        publish(results, options)
        from tests.docs.make_docs import main as make_docs

        make_docs([".", "benchmarks"])
    return 0


def run_one(name: str, options: Options) -> list[Outcome]:
    """One benchmark; a package that is not installed is a reason, not a crash."""
    try:
        outcomes: list[Outcome] = importlib.import_module(f"benchmarks.{name}").run(options)
        return outcomes
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("benchmarks", "holdfast", "holdfast_federation"):
            raise
        return [NotRun(name, f"{error.name} is not installed")]


if __name__ == "__main__":
    sys.exit(main())
