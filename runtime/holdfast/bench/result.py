"""One benchmark of one model, as the JSON object that is stored and the lines that people read."""

from __future__ import annotations

import datetime
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from holdfast import __version__
from holdfast.bench.against import compare_with_server
from holdfast.bench.cold import measure_cold
from holdfast.bench.inputs import synthetic_inputs
from holdfast.bench.latency import WARM_UP_CALLS, Latencies, measure, noise, report, warm_up
from holdfast.bench.machine import describe_machine
from holdfast.clock import Clock
from holdfast.inference.session import PROVIDERS, ModelSource, SessionOptions, load_session
from holdfast.inference.tensors import TensorSpec
from holdfast.inference.trial import run_trial
from holdfast.serving.server import Address

SCHEMA = "holdfast.bench/1"


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What to measure. `against` = a server that serves the same file as `name`."""

    seconds: float = 5.0
    threads: int = 1
    spinning: bool = False
    seed: int = 0
    against: Address | None = None
    name: str = ""


def run_bench(path: Path, options: BenchOptions, clock: Clock) -> dict[str, object]:
    """Measure a model file.

    Raises:
        ModelError: the model did not pass its trial, or a fresh process could not run it.
        LinkError: the server to compare with does not answer.
    """
    start_ns, start_s = clock.utc_ns(), clock.monotonic_s()
    source = ModelSource.from_file(path)
    session_options = SessionOptions(options.threads, spinning=options.spinning)
    trial = run_trial(source, options=session_options)
    cold = measure_cold(path, clock, threads=options.threads, spinning=options.spinning, seed=options.seed)
    session = load_session(source, session_options)
    inputs = synthetic_inputs(session.inputs, options.seed)
    cpu_ns: int | None = None
    against: dict[str, object] | None = None
    if options.against is None:
        warm = Latencies()
        warm_up(lambda: session.run(inputs))
        before_s = _cpu_s()
        measure(lambda: session.run(inputs), options.seconds, clock, warm)
        cpu_ns = round((_cpu_s() - before_s) * 1e9 / len(warm.latency_ns))
    else:
        warm, against = compare_with_server(session, inputs, options.against, options.name, options.seconds, clock)
    clean_reason = None if options.threads == 1 else "only the calling thread's run queue is watched; use --threads 1"
    return {
        "schema": SCHEMA,
        "tool": {"name": "holdfast", "version": __version__},
        "started_utc": datetime.datetime.fromtimestamp(start_ns // 10**9, datetime.UTC).isoformat(),
        "duration_ns": round((clock.monotonic_s() - start_s) * 1e9),
        "machine": describe_machine(),
        "model": {
            "file": path.name,
            "sha256": source.digest,
            "bytes": source.size_bytes,
            "inputs": [_tensor(spec) for spec in session.inputs],
            "outputs": [_tensor(spec) for spec in session.outputs],
            "trial_peak_memory_bytes": trial.peak_memory_bytes,
        },
        "session": {"provider": PROVIDERS[0], "intra": options.threads, "inter": 1, "spinning": options.spinning},
        "inputs": {"source": "synthetic", "seed": options.seed, "dynamic_dimensions": 1},
        "noise": noise(warm),
        "cold": cold,
        "in_process": {
            "boundary": "ModelSession.run: ONNX Runtime and the check of the inputs",
            "warm_up_calls": WARM_UP_CALLS,
            "latency_ns": report(warm, clean_reason=clean_reason),
            "cpu_ns_per_call": cpu_ns,
        },
        "against": against,
        "energy": {"uj_per_call": None, "reason": "no energy counter is read by this version"},
    }


def summary_lines(result: Mapping[str, object]) -> list[str]:
    """The result for people: microseconds, and what to think of them."""
    model, machine, cold = _of(result, "model"), _of(result, "machine"), _of(_of(result, "cold"), "median")
    latency, quiet = _of(_of(result, "in_process"), "latency_ns"), _of(result, "noise")
    session = _of(result, "session")
    lines = [
        f"{model['file']}  {model['bytes']} bytes  sha256 {str(model['sha256'])[:12]}",
        f"  {machine['cpu']}, {machine['cores_usable']} cores; onnxruntime {machine['onnxruntime']}, "
        f"{session['provider']}, {session['intra']} thread(s), spinning {'on' if session['spinning'] else 'off'}",
        f"  cold start  import {_ms(cold['import_ns'])}  load {_ms(cold['load_ns'])}  first run "
        f"{_ms(cold['first_run_ns'])}  whole process {_ms(cold['process_ns'])}  (fresh processes, files cached)",
        "  in process  " + _percentiles(_of(latency, "raw")),
    ]
    if latency["clean"] is not None:
        lines.append("     - clean  " + _percentiles(_of(latency, "clean")) + "  (calls that never waited for a core)")
    against = result["against"]
    if isinstance(against, dict):
        lines.append(
            f"  server      {_percentiles(_of(_of(against, 'latency_ns'), 'raw'))}  at {against['address']}, gRPC"
        )
        ratio = against["ratio_p50"]
        if isinstance(ratio, dict):
            spread = f"{ratio['median']:g}x of in process (blocks {ratio['min']:g} to {ratio['max']:g})"
            lines.append(f"              p50 {spread}, this Python client included; same answers")
        else:
            lines.append(f"              {against['ratio_reason']}")
    lines.append(f"  machine     {quiet['verdict']}: {quiet['run_queue_pct']} % of the time waiting for a core")
    return lines


def _percentiles(figures: Mapping[str, object]) -> str:
    parts = [f"{name} {_us(figures[name])}" for name in ("p50", "p90", "p99")]
    return "  ".join([*parts, f"n {figures['n']}"])


def _us(value: object) -> str:
    return f"{value / 1e3:.1f} us" if isinstance(value, int) else "(too few calls)"


def _ms(value: object) -> str:
    return f"{value / 1e6:.1f} ms" if isinstance(value, int) else "-"


def _of(fields: Mapping[str, object], key: str) -> Mapping[str, object]:
    value = fields[key]
    if not isinstance(value, Mapping):
        raise TypeError(f"{key} is not an object")
    return value


def _tensor(spec: TensorSpec) -> dict[str, object]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
