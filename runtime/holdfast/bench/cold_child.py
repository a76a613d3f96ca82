"""The fresh process of a cold start: times its own stages and prints one JSON object. Not meant to be run by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from holdfast.clock import SystemClock


def main(arguments: list[str]) -> int:
    """Import, load, run, run again. Arguments: path, threads, spinning, seed."""
    clock = SystemClock()
    path, threads, spinning, seed = arguments
    marks = [clock.monotonic_s()]
    from holdfast.bench.inputs import synthetic_inputs
    from holdfast.inference.session import ModelSource, SessionOptions, load_session

    marks.append(clock.monotonic_s())
    session = load_session(ModelSource.from_file(Path(path)), SessionOptions(int(threads), spinning=spinning == "1"))
    marks.append(clock.monotonic_s())
    inputs = synthetic_inputs(session.inputs, int(seed))
    made_s = clock.monotonic_s()
    session.run(inputs)
    marks.append(clock.monotonic_s())
    session.run(inputs)
    marks.append(clock.monotonic_s())
    first_run_s = marks[3] - made_s
    seconds = [marks[1] - marks[0], marks[2] - marks[1], first_run_s, marks[4] - marks[3]]
    names = ("import_ns", "load_ns", "first_run_ns", "second_run_ns")
    sys.stdout.write(json.dumps({name: round(value * 1e9) for name, value in zip(names, seconds, strict=True)}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
