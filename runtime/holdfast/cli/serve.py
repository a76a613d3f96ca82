"""`holdfast serve`: a bare ONNX file, or a folder of models, over the Open Inference Protocol; no coordinator."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_OK, Command
from holdfast.cli.serve_folder import IDLE_S, serve_folder
from holdfast.cli.serve_options import (
    add_access_arguments,
    add_scheduling_arguments,
    graph_cache_of,
    options_from,
    settings_from,
)
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from holdfast.inference.session import ModelSession, ModelSource
    from holdfast.inference.tensors import TensorSpec
    from holdfast.inference.trial import TrialReport
    from holdfast.serving.server import Address, ServerOptions
    from holdfast.serving.settings import ServingSettings

VERSION = "1"  # a bare file has no version of its own; clients of the protocol expect a number
MAX_EXAMPLE_ELEMENTS = 1_024  # a curl line with more numbers helps nobody
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_FLOAT_TYPES = ("float16", "float32", "float64")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, metavar="MODEL", help="an ONNX file, or a folder NAME/VERSION/model.onnx")
    parser.add_argument("--name", help="the name clients use (default: the file's stem)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads inside one run of the model (default %(default)s)"
    )
    parser.add_argument(
        "--spinning", action="store_true", help="let idle threads spin: 6 to 17 times the CPU, rarely faster"
    )
    add_access_arguments(parser)
    add_scheduling_arguments(parser)
    parser.add_argument(
        "--poll-s",
        type=float,
        default=0.0,
        metavar="S",
        help="look for changes in a folder this often (default: never)",
    )
    parser.add_argument(
        "--trial-memory-mib", type=int, default=2048, help="memory the model may take (default %(default)s)"
    )
    parser.add_argument(
        "--trial-timeout-s", type=float, default=60.0, help="time its first load may take (default %(default)s)"
    )
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="names of the model's classes, one a line, for classification"
    )
    parser.add_argument("--json", action="store_true", help="print the ready line as one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    if not 1 <= arguments.threads <= 1024 or arguments.trial_memory_mib < 1 or not arguments.trial_timeout_s > 0:
        raise UsageError("expected --threads from 1 to 1024, --trial-memory-mib and --trial-timeout-s above 0")
    if not 0 <= arguments.poll_s <= IDLE_S:
        raise UsageError(f"expected --poll-s from 0 (never) to {IDLE_S:g}")
    from holdfast.inference.memory import share_heap

    share_heap()
    # before numpy comes: its BLAS, which serving never calls, would start a thread on every core and let it spin
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not arguments.model.is_dir():
        return _serve_file(arguments)
    settings = settings_from(arguments)
    return serve_folder(arguments, settings, options_from(arguments, settings, has_repository=True))


def _serve_file(arguments: argparse.Namespace) -> int:
    name = _name_of(arguments)  # a wrong name is told before anything is loaded
    session, server_options = _loaded(arguments)
    return _serve_session(name, session, server_options, as_json=arguments.json)


def _loaded(arguments: argparse.Namespace) -> tuple[ModelSession, ServerOptions]:
    """The model, and how it is served. The file's bytes are not kept."""
    from holdfast.inference.session import ModelSource

    source = ModelSource.from_file(arguments.model)
    with _trial_beside(source, arguments) as verdict:
        # while the child loads the model, this process loads the server: the two take about as long
        settings = settings_from(arguments)
        options = options_from(arguments, settings, has_repository=False)
        verdict.result()
    return _prepared(arguments, settings, source), options


@contextmanager
def _trial_beside(source: ModelSource, arguments: argparse.Namespace) -> Iterator[Future[TrialReport]]:
    """Try the model in its child on a thread of its own; waits for it on the way out."""
    from concurrent.futures import ThreadPoolExecutor

    from holdfast.inference.session import SessionOptions
    from holdfast.inference.trial import run_trial

    with ThreadPoolExecutor(1, "trial") as beside:
        yield beside.submit(
            run_trial,
            source,
            memory_bytes=arguments.trial_memory_mib * 1024**2,
            timeout_s=arguments.trial_timeout_s,
            options=SessionOptions(arguments.threads, spinning=arguments.spinning),
        )


def _prepared(arguments: argparse.Namespace, settings: ServingSettings, source: ModelSource) -> ModelSession:
    from holdfast.inference.memory import settle
    from holdfast.inference.prepare import prepare_session
    from holdfast.inference.session import SessionOptions, share_threads
    from holdfast.serving.repository_folder import read_labels

    settle()
    labels = () if arguments.labels is None else read_labels(arguments.labels)
    if settings.shared_threads:
        share_threads(settings.shared_threads)
    shared = settings.shared_threads > 0
    options = SessionOptions(arguments.threads, spinning=arguments.spinning, shared_threads=shared)
    return prepare_session(source, options, cache=graph_cache_of(settings)).labelled(labels)


def _serve_session(name: str, session: ModelSession, server_options: ServerOptions, *, as_json: bool) -> int:
    from holdfast.inference.memory import give_back
    from holdfast.inference.pool import ModelPool
    from holdfast.lifecycle import Stop, stop_on_signals
    from holdfast.serving.server import Server

    give_back()  # what loading took
    pool = ModelPool()
    pool.swap(name, VERSION, session)
    server = Server(pool, options=server_options)
    stop = Stop()
    with stop_on_signals(stop):
        address = server.start()
        try:
            _say_ready(name, session, address, as_json=as_json)
            while not stop.wait(IDLE_S):
                pass
        finally:
            server.stop()
    if not as_json:
        print("stopped", flush=True)
    return EXIT_OK


def _name_of(arguments: argparse.Namespace) -> str:
    name: str = arguments.name if arguments.name is not None else arguments.model.stem
    if not _NAME.match(name):
        raise UsageError(f"{name!r} cannot be a model's name in a URL; give one with --name, of letters, digits, . _ -")
    return name


def _say_ready(name: str, session: ModelSession, address: Address, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"event": "ready", "model": name, "version": VERSION, "listen": str(address)}), flush=True)
        return
    print(f"serving {name} on {address} (gRPC and HTTP); Ctrl-C stops")
    print("\nfrom a shell:\n  " + curl_line(name, session, address))
    print("\nfrom Python (pip install 'tritonclient[grpc]'):")
    print("\n".join("  " + line for line in client_lines(name, session, address)), flush=True)


def curl_line(name: str, session: ModelSession, address: Address) -> str:
    """A request that works as it stands: zeros, every dynamic dimension 1; raw bytes where numbers would fill pages."""
    to = f"http://{address}" if address.path is None else f"--unix-socket {address.path} http://localhost"
    url = f"{to}/v2/models/{name}/infer"
    is_large = sum(map(_count, session.inputs)) > MAX_EXAMPLE_ELEMENTS
    if len(session.inputs) == 1 and (is_large or session.inputs[0].dtype == "bfloat16"):
        (spec,) = session.inputs
        from holdfast.inference.tensors import numpy_dtype

        size_bytes = _count(spec) * (1 if spec.dtype == "string" else numpy_dtype(spec.dtype).itemsize)
        header = "-H 'Inference-Header-Content-Length: 0' --data-binary @-"
        return f"head -c {size_bytes} /dev/zero | curl -s {url} {header} | strings"
    inputs = [
        {"name": spec.name, "datatype": _datatype(spec), "shape": _shape(spec), "data": _zeros(spec)}
        for spec in session.inputs
    ]
    quoted = json.dumps({"inputs": inputs}, separators=(",", ":")).replace("'", "'\\''")
    return f"curl -s {url} -d '{quoted}'"


def client_lines(name: str, session: ModelSession, address: Address) -> list[str]:
    """The same request from Python, with the model's own names, datatypes and shapes."""
    lines = [
        "import numpy as np, tritonclient.grpc as grpcclient",
        f"client = grpcclient.InferenceServerClient({str(address)!r})",
    ]
    for index, spec in enumerate(session.inputs):
        numpy_names = {"string": "object_", "bool": "bool_", "bfloat16": "float32"}  # the client rounds to BF16 itself
        dtype = f"np.{numpy_names.get(spec.dtype, spec.dtype)}"
        array = (
            f'np.full({_shape(spec)}, b"", {dtype})' if spec.dtype == "string" else f"np.zeros({_shape(spec)}, {dtype})"
        )
        lines.append(f"x{index} = grpcclient.InferInput({spec.name!r}, {_shape(spec)}, {_datatype(spec)!r})")
        lines.append(f"x{index}.set_data_from_numpy({array})")
    names = ", ".join(f"x{index}" for index in range(len(session.inputs)))
    lines.append(f"answer = client.infer({name!r}, [{names}])")
    lines += [f"print({spec.name!r}, answer.as_numpy({spec.name!r}))" for spec in session.outputs]
    return lines


def _datatype(spec: TensorSpec) -> str:
    from holdfast.serving.datatypes import DATATYPE_OF

    return DATATYPE_OF[spec.dtype]


def _shape(spec: TensorSpec) -> list[int]:
    return [1 if size is None else size for size in spec.shape]


def _count(spec: TensorSpec) -> int:
    return math.prod(_shape(spec))


def _zeros(spec: TensorSpec) -> list[object]:
    zero: object = 0.0 if spec.dtype in _FLOAT_TYPES else {"bool": False, "string": ""}.get(spec.dtype, 0)
    if _count(spec) > MAX_EXAMPLE_ELEMENTS:
        return [f"... {_count(spec)} numbers ..."]
    return [zero] * _count(spec)


SERVE = Command(
    help="serve an ONNX file, or a folder of them, over gRPC and HTTP",
    add_arguments=_arguments,
    run=_run,
    description="""Serve an ONNX file or a folder of models over the Open Inference Protocol, gRPC and HTTP on one port.

  holdfast example digits.onnx         (if you have no model)
  holdfast serve digits.onnx
  holdfast serve model.onnx --name scorer --listen 127.0.0.1:0 --threads 2
  holdfast serve model.onnx --listen 127.0.0.1:8080 --listen unix:/run/user/1000/scorer.sock
  holdfast serve models/ --poll-s 5    (models/NAME/VERSION/model.onnx; read only)
  holdfast serve models/ --settings serving.toml --batch-delay-ms 2

In a folder, models/NAME/session.toml may say which versions are served and with
how many threads; a model that cannot be loaded is told with its reason and the
others are served. A file is first loaded in a child process with limits on memory and time.
serving.toml holds settings by name, like max_queued = 64; each is also a variable,
HOLDFAST_SERVING_MAX_QUEUED, and the frequent ones are flags. Ctrl-C or SIGTERM lets running requests end.""",
)
