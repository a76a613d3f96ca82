"""From a model that passed its trial to a session ready to serve: loaded, warm, timed, its mixing verdict known.

Slow (up to PROBE_BUDGET_S beyond the load), so never on the serving loop's thread.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from holdfast.clock import Clock, SystemClock, ThreadCpuClock
from holdfast.errors import HoldfastError
from holdfast.inference.background import in_background
from holdfast.inference.row_mixing import is_bounded, mixing_of
from holdfast.inference.session import ModelSession, ModelSource, SessionOptions, load_session
from holdfast.inference.tensors import STRING, Array, TensorSpec, numpy_dtype
from holdfast.inference.traits import Traits, median

if TYPE_CHECKING:
    from holdfast.inference.graph_cache import GraphCache

WARM_RUNS, TIMED_RUNS = 2, 5  # the first run of a session plans its memory
MAX_SMALLEST_ELEMENTS = 2**24  # a model whose smallest input is larger is not run for timing


def prepare_session(
    source: ModelSource,
    options: SessionOptions | None = None,
    clock: Clock | None = None,
    cache: GraphCache | None = None,
) -> ModelSession:
    """Load a model and measure it, giving way to those that are served meanwhile.

    Args:
        clock: None = CPU time, where a run takes no other thread, so that the model is measured and not its neighbours.
        cache: graphs optimised before; None = optimise anew.
    Raises:
        ModelError: not an ONNX model, or one with inputs or outputs that cannot be served.
    """
    options = options or SessionOptions()
    if options.intra_op_threads > 1 or options.shared_threads:
        # not in the background: its threads would have the low priority too, for good
        return _prepare(source, options, clock or SystemClock(), cache)
    return in_background(lambda: _prepare(source, options, clock or ThreadCpuClock(), cache))


def _prepare(source: ModelSource, options: SessionOptions, clock: Clock, cache: GraphCache | None) -> ModelSession:
    session = load_session(source, options) if cache is None else cache.load(source, options)
    return session.measured(measure(source.model, session, clock))


def measure(model: bytes, session: ModelSession, clock: Clock) -> Traits:
    """How long a run takes and whether rows may mix. A model that refuses zeros has no time."""
    probe = mixing_of(model, session, clock)
    smallest = smallest_request(session)
    elements = sum(array.size for array in smallest.values())
    run_s = probe.run_s if probe.run_s is not None else _run_s(session, smallest, elements, clock)
    return Traits(run_s, max(1, elements), probe.batch_s, is_bounded(model), probe.mixing)


def smallest_request(session: ModelSession) -> dict[str, Array]:
    """Zeros, or empty texts, with every open axis 1."""
    return {spec.name: _zeros(spec) for spec in session.inputs}


def _zeros(spec: TensorSpec) -> Array:
    shape = tuple(1 if size is None else size for size in spec.shape)
    if spec.dtype == STRING:
        return np.full(shape, b"", dtype=np.object_)
    return np.zeros(shape, dtype=numpy_dtype(spec.dtype))


def _run_s(session: ModelSession, inputs: dict[str, Array], elements: int, clock: Clock) -> float | None:
    if elements > MAX_SMALLEST_ELEMENTS:
        return None
    times: list[float] = []
    try:
        for _ in range(WARM_RUNS + TIMED_RUNS):
            start_s = clock.monotonic_s()
            session.run_checked(inputs)
            times.append(clock.monotonic_s() - start_s)
            if times[-1] > 1.0:
                break  # slow enough to be sure
    except HoldfastError:
        return None
    return median(times[WARM_RUNS:] or times)
