"""The trial of a model: its first load happens in a disposable child process with memory and time limits.

Rules: a model file is an untrusted program, so a digest is loaded in this process only after `run_trial` returned. The
child gets the bytes over an anonymous file, no environment worth stealing, and may answer at most MAX_ANSWER_BYTES; the
parent reads that as data. Reasons of refusal are the constants below and stand in `TrialError.reason`.

Why a process and not a thread: neither a hang inside ONNX Runtime nor its memory can be taken back otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.clock import Clock, SystemClock
from holdfast.errors import TrialError
from holdfast.inference.background import lower_process
from holdfast.inference.session import ModelSource, SessionOptions
from holdfast.inference.tensors import Array, TensorSpec

DEFAULT_MEMORY_BYTES = 2 * 1024**3  # 2 GiB beyond the interpreter: room for the largest model an edge node serves
DEFAULT_TIMEOUT_S = 60.0  # a 50 MB model loads in 0.3 s; slow flash and a busy core get two orders of margin
MAX_ANSWER_BYTES = 262_144  # 256 KiB: a few hundred tensor names; the child's file cannot grow past it

CRASH = "crash"
MEMORY = "memory"
TIMEOUT = "timeout"
NOT_A_MODEL = "not-a-model"
WRONG_OUTPUTS = "wrong-golden-outputs"
REASONS = (CRASH, MEMORY, TIMEOUT, NOT_A_MODEL, WRONG_OUTPUTS)

_ENVIRONMENT_KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "HOME", "TMPDIR", "LANG")
_ENVIRONMENT_ADDED = {"OPENBLAS_NUM_THREADS": "1"}  # numpy would start a thread on every core and let it spin for 50 ms


@dataclass(frozen=True, slots=True)
class Golden:
    """Inputs with the outputs the author got for them: |got - expected| <= atol + rtol * |expected|."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    rtol: float = 1e-3
    atol: float = 1e-4


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What a passed trial learned. `probe` says whether a run on zeros worked; a model may rightly refuse zeros."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    load_ns: int
    peak_memory_bytes: int
    probe: str
    golden_checked: bool


def run_trial(
    model: ModelSource | Path,
    golden: Golden | None = None,
    *,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    options: SessionOptions | None = None,
    clock: Clock | None = None,
) -> TrialReport:
    """Load and run a model in a child process that cannot harm this one.

    Args:
        memory_bytes: address space the model may take, beyond what the interpreter and ONNX Runtime hold already.
        timeout_s: wall time for everything, the start of the child included.
    Raises:
        TrialError: the model crashed, hung, ate too much memory, is not a model, or gave other outputs than `golden`.
        ModelError: the file cannot be read.
    """
    source = ModelSource.from_file(model) if isinstance(model, Path) else model
    options = options or SessionOptions()
    clock = clock or SystemClock()
    header = {
        "memory_bytes": memory_bytes,
        "timeout_s": timeout_s,
        "max_answer_bytes": MAX_ANSWER_BYTES,
        "threads": options.intra_op_threads,
        "spinning": options.spinning,
        "external": [[name, len(blob)] for name, blob in source.external.items()],
        "model_bytes": len(source.model),
        "tolerance": None if golden is None else [golden.rtol, golden.atol],
    }
    deadline_s = clock.monotonic_s() + timeout_s
    with _anonymous_file("trial-question") as question, _anonymous_file("trial-answer") as answer:
        question.write(json.dumps(header).encode() + b"\n")
        question.write(source.model)
        for blob in source.external.values():
            question.write(blob)
        if golden is not None:
            question.write(_golden_bytes(golden))
        question.seek(0)
        code = _run_child(question, answer, max(0.1, deadline_s - clock.monotonic_s()))
        answer.seek(0)
        said = answer.read(MAX_ANSWER_BYTES)
    return _judge(code, said, source, header, timeout_s)


def encode_array(array: Array) -> Array:
    """An array that npz can hold without pickle: strings as numpy text."""
    if array.dtype != np.object_:
        return array
    texts: Array = np.array([bytes(item).decode("utf-8") for item in array.ravel().tolist()], dtype=np.str_)
    return texts.reshape(array.shape)


def _golden_bytes(golden: Golden) -> bytes:
    buffer = io.BytesIO()
    arrays = {f"in/{name}": encode_array(array) for name, array in golden.inputs.items()}
    arrays |= {f"out/{name}": encode_array(array) for name, array in golden.outputs.items()}
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _anonymous_file(name: str) -> io.BufferedRandom:
    return os.fdopen(os.memfd_create(name), "w+b")


def _run_child(question: io.BufferedRandom, answer: io.BufferedRandom, timeout_s: float) -> int | None:
    """Exit code of the child, negative for a signal; None when it had to be killed for time."""
    environment = {name: os.environ[name] for name in _ENVIRONMENT_KEPT if name in os.environ}
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "holdfast.inference.trial_child"],
        stdin=question,
        stdout=answer,
        stderr=subprocess.DEVNULL,
        env=environment | _ENVIRONMENT_ADDED,
        start_new_session=True,  # Ctrl-C in the terminal goes to us; we end the child
    )
    try:
        lower_process(child.pid)
        return _ended_within(child, timeout_s)
    finally:
        child.kill()
        child.wait()


def _ended_within(child: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Its exit code; None if it still runs. Waits in the kernel: Popen's own wait looks every 50 ms, and for each look
    it takes the interpreter from those who serve."""
    try:
        handle = os.pidfd_open(child.pid)
    except OSError:  # Linux before 5.3, or no file to open left
        with contextlib.suppress(subprocess.TimeoutExpired):
            return child.wait(timeout_s)
        return None
    try:
        end = select.poll()
        end.register(handle, select.POLLIN)
        end.poll(timeout_s * 1e3)
    finally:
        os.close(handle)
    return child.poll()


def _judge(
    code: int | None, said: bytes, source: ModelSource, header: Mapping[str, object], timeout_s: float
) -> TrialReport:
    answer = _parse(said)
    report = _report(answer) if code == 0 and answer.get("ok") is True and "reason" not in answer else None
    if report is None:
        raise _refusal(code, answer, f"model {source.digest[:12]}", header, timeout_s)
    return report


def _refusal(
    code: int | None, answer: Mapping[str, object], name: str, header: Mapping[str, object], timeout_s: float
) -> TrialError:
    reason = answer.get("reason")
    if code is None or code == -signal.SIGALRM:
        return TrialError(
            TIMEOUT, f"{name} was not loaded and run within {timeout_s:g} s; it hangs, or allow more time"
        )
    if reason == MEMORY:
        limit = header["memory_bytes"]
        return TrialError(
            MEMORY, f"{name} needs more than the {limit} bytes of memory allowed; allow more or shrink it"
        )
    if code != 0:
        how = signal.Signals(-code).name if code < 0 and -code in set(signal.Signals) else f"exit code {code}"
        return TrialError(CRASH, f"{name} crashed while it was tried ({how}); don't serve this file")
    if reason in (NOT_A_MODEL, WRONG_OUTPUTS):
        return TrialError(str(reason), f"{name}: {_text(answer.get('message'))}")
    return TrialError(CRASH, f"{name} gave no readable answer when it was tried; don't serve this file")


def _report(answer: Mapping[str, object]) -> TrialReport | None:
    """What a child that passed says; None if it cannot be read."""
    try:
        return TrialReport(
            inputs=_specs(answer["inputs"]),
            outputs=_specs(answer["outputs"]),
            load_ns=int(str(answer["load_ns"])),
            peak_memory_bytes=int(str(answer["peak_memory_bytes"])),
            probe=_text(answer["probe"]),
            golden_checked=answer["golden_checked"] is True,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _parse(said: bytes) -> dict[str, object]:
    try:
        value = json.loads(said)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return "".join(char for char in str(value)[:500] if char.isprintable())


def _specs(value: object) -> tuple[TensorSpec, ...]:
    if not isinstance(value, list):
        raise TypeError("not a list")
    return tuple(
        TensorSpec(_text(name), _text(dtype), tuple(None if size is None else int(size) for size in shape))
        for name, dtype, shape in value
    )
