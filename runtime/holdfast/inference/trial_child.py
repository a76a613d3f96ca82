"""The disposable child of a trial: limits itself, then loads and runs the model it was handed.

Protocol: standard input holds one JSON line, the model, its external files and, perhaps, an npz of golden arrays; the
answer is one JSON object on standard output. Limits are set before the model is touched, and are hard: the alarm and
the file size hold even if the parent is gone. Not meant to be run by hand.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from holdfast.clock import SystemClock
from holdfast.errors import HoldfastError, ModelError
from holdfast.inference.session import ModelSession, ModelSource, SessionOptions, load_session
from holdfast.inference.tensors import STRING, Array, TensorSpec, numpy_dtype
from holdfast.inference.trial import MEMORY, NOT_A_MODEL, WRONG_OUTPUTS, encode_array

MAX_HEADER_BYTES = 1_048_576  # 1 MiB: sizes and names only
PROBE_LIMIT_ELEMENTS = 2**26  # zeros beyond 64 M elements prove nothing more
_PR_SET_PDEATHSIG = 1  # linux/prctl.h: end with the parent
_MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "bad allocation")


def main() -> int:
    """Answer one trial. Exit code 0 whenever an answer was given."""
    answer_to = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not look like an answer
    question = sys.stdin.buffer
    header = json.loads(question.readline(MAX_HEADER_BYTES))
    source = ModelSource(
        question.read(header["model_bytes"]), {name: question.read(size) for name, size in header["external"]}
    )
    golden = question.read()
    _limit(header)
    try:
        answer = _try(source, header, golden)
    except MemoryError:
        answer = {"reason": MEMORY}
    except _WrongOutputs as error:
        answer = {"reason": WRONG_OUTPUTS, "message": str(error)}
    except HoldfastError as error:
        text = str(error)
        full = any(word in text.lower() for word in _MEMORY_WORDS)
        answer = {"reason": MEMORY} if full else {"reason": NOT_A_MODEL, "message": text}
    answer_to.write(json.dumps(answer).encode())
    answer_to.flush()
    return 0


def _limit(header: Mapping[str, float]) -> None:
    held_pages = int(Path("/proc/self/statm").read_text().split()[0])
    held = held_pages * os.sysconf("SC_PAGE_SIZE")
    _hard_limit(resource.RLIMIT_AS, held + int(header["memory_bytes"]))
    _hard_limit(resource.RLIMIT_FSIZE, int(header["max_answer_bytes"]))
    _hard_limit(resource.RLIMIT_CORE, 0)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, float(header["timeout_s"]) + 1.0)  # the parent's clock decides first


def _hard_limit(kind: int, value: int) -> None:
    ceiling = resource.getrlimit(kind)[1]
    if ceiling != resource.RLIM_INFINITY:
        value = min(value, ceiling)
    resource.setrlimit(kind, (value, value))


def _try(source: ModelSource, header: Mapping[str, object], golden: bytes) -> dict[str, object]:
    clock = SystemClock()
    start_s = clock.monotonic_s()
    session = load_session(source, SessionOptions(int(str(header["threads"])), spinning=bool(header["spinning"])))
    load_ns = int((clock.monotonic_s() - start_s) * 1e9)
    probe = _probe(session)
    tolerance = header["tolerance"]
    if isinstance(tolerance, list):
        _compare(session, golden, rtol=float(tolerance[0]), atol=float(tolerance[1]))
    return {
        "ok": True,
        "inputs": [[spec.name, spec.dtype, spec.shape] for spec in session.inputs],
        "outputs": [[spec.name, spec.dtype, spec.shape] for spec in session.outputs],
        "load_ns": load_ns,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "probe": probe,
        "golden_checked": tolerance is not None,
    }


def _probe(session: ModelSession) -> str:
    """Run once on zeros, dynamic dimensions 1: what hangs or crashes at its first run does it here."""
    shapes = {spec.name: tuple(size or (1 if size is None else 0) for size in spec.shape) for spec in session.inputs}
    if sum(int(np.prod(shape, dtype=np.float64)) for shape in shapes.values()) > PROBE_LIMIT_ELEMENTS:
        return "not run: the declared inputs are too large"
    try:
        session.run({spec.name: _zeros(spec, shapes[spec.name]) for spec in session.inputs})
    except HoldfastError as error:
        if any(word in str(error).lower() for word in _MEMORY_WORDS):
            raise
        return f"failed on zeros: {error}"
    return "ok"


def _zeros(spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    if spec.dtype != STRING:
        return np.zeros(shape, dtype=numpy_dtype(spec.dtype))
    array = np.empty(shape, dtype=np.object_)
    array.fill(b"")
    return array


def _compare(session: ModelSession, golden: bytes, *, rtol: float, atol: float) -> None:
    arrays = np.load(io.BytesIO(golden), allow_pickle=False)
    inputs = {key[3:]: _decode(arrays[key]) for key in arrays.files if key.startswith("in/")}
    expected = {key[4:]: arrays[key] for key in arrays.files if key.startswith("out/")}
    try:
        got = session.run(inputs, tuple(expected))
    except HoldfastError as error:
        if any(word in str(error).lower() for word in _MEMORY_WORDS):
            raise
        raise _WrongOutputs(f"golden inputs do not run: {error}") from error
    for name, want in expected.items():
        have = encode_array(got[name])
        if have.shape != want.shape or have.dtype.kind != want.dtype.kind:
            raise _WrongOutputs(
                f"golden output '{name}': expected {want.dtype}{list(want.shape)}, got {have.dtype}{list(have.shape)}"
            )
        if want.dtype.kind == "f":
            same = bool(np.allclose(have, want, rtol=rtol, atol=atol, equal_nan=True))
        else:
            same = bool(np.array_equal(have, want))
        if not same:
            raise _WrongOutputs(f"golden output '{name}' differs from the author's beyond rtol {rtol:g}, atol {atol:g}")


class _WrongOutputs(ModelError):
    """The model runs, but does not say what its author saw."""


def _decode(array: Array) -> Array:
    if array.dtype.kind != "U":
        return array
    decoded = np.empty(array.shape, dtype=np.object_)
    decoded.ravel()[:] = [str(item).encode("utf-8") for item in array.ravel()]
    return decoded


if __name__ == "__main__":
    sys.exit(main())
