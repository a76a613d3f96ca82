"""May rows of different clients share a run of this model? Only if no row can change or reveal another one's answer.

Two proofs, both needed. `check_graph` reads the file: every operator is on the tested list of `row_rules` and keeps
rows on the first axis, so that row i of an answer is a function of row i of the inputs alone, whatever the values are.
`probe_rows` runs the loaded session: in every batch size and at every position, beside neighbours of very different
scale, NaN and infinity, each row's answer has the same bits as alone. Sizes that were not probed are never mixed.

Why bits and not a tolerance: an answer can be audited by running the request again by itself. Why both proofs:
runtime/decisions/0008-rows-of-strangers-share-a-run-only-when-proven.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from holdfast.clock import Clock
from holdfast.errors import HoldfastError, ModelError
from holdfast.inference.onnx_graph import Constant, Graph, Node, read_graph
from holdfast.inference.row_rules import MAX_OPSET, MIN_OPSET, apply
from holdfast.inference.row_shapes import ROWS, MixedRowsError, Tensor
from holdfast.inference.row_sizes import numbers_of
from holdfast.inference.session import ModelSession
from holdfast.inference.tensors import BFLOAT16_NAME, STRING, Array, TensorSpec
from holdfast.inference.traits import Mixing, median

BUCKETS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # a batch is padded by half of its rows at most
PROBE_BUDGET_S = 0.25  # per model at load; a model so slow that this ends early gains little from batches anyway
MAX_PROBE_ELEMENTS = 2**22  # of one input of the largest bucket: 16 MiB of float32
WORTH_IT = 0.9  # a batch that takes more than this part of its rows one by one only makes people wait
PROVEN = "every operator keeps rows apart, and a probe found the same bits in every batch size and position"

_SCALES = (1.0, 1e-3, 1e3, 1e-6, 30.0, 1e6, 0.1)
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})


@dataclass(frozen=True, slots=True)
class Probe:
    """What a probe found: how long one row and each bucket took, and the buckets in which no bit changed."""

    run_s: float | None
    batch_s: Mapping[int, float]
    mixing: Mixing


def mixing_of(model: bytes, session: ModelSession, clock: Clock, budget_s: float = PROBE_BUDGET_S) -> Probe:
    """Both proofs for a model and the session it was loaded into."""
    try:
        check_graph(read_graph(model))
    except ModelError as error:
        return Probe(None, {}, Mixing(False, str(error)))
    return probe_rows(session, clock, budget_s)


def is_bounded(model: bytes) -> bool:
    """Whether the model is free of loops and branches, in nested graphs and functions too. False if not readable."""
    try:
        operators = read_graph(model).operators
    except ModelError:
        return False
    return not any(operator in _CONTROL_FLOW for _, operator in operators)


def check_graph(graph: Graph) -> None:
    """Show from the file that rows stay apart.

    Raises:
        MixedRowsError: it cannot be shown; the reason names the operator or the input.
    """
    opset = graph.opsets.get("", 0)
    if not MIN_OPSET <= opset <= MAX_OPSET:
        raise MixedRowsError(f"operator set {opset} is outside those tested, {MIN_OPSET} to {MAX_OPSET}")
    if graph.has_functions or graph.has_sparse:
        raise MixedRowsError("the model holds functions or sparse tensors of its own")
    known = {name: _fixed(constant) for name, constant in graph.constants.items()}
    for declared in graph.inputs:
        known[declared.name] = _rows(declared.name, declared.dims)
    if len(known) != len(graph.constants) + len(graph.inputs):
        raise MixedRowsError("two inputs have the same name")
    for node in graph.nodes:
        _follow(node, known)
    for name in graph.outputs:
        if name not in known or not known[name].has_rows:
            raise MixedRowsError(f"output '{name}' has no row per row of the inputs")


def probe_rows(session: ModelSession, clock: Clock, budget_s: float = PROBE_BUDGET_S) -> Probe:
    """Show on the loaded session that each row has the same bits in every batch size and position as alone.

    Buckets are tried in rising order until `budget_s` is spent; only those tried may be used.
    """
    try:
        lines = _lines(session.inputs, BUCKETS[-1])
        return _Prober(session, lines, clock, clock.monotonic_s() + budget_s).probe()
    except MixedRowsError as error:
        return Probe(None, {}, Mixing(False, str(error)))
    except HoldfastError as error:
        return Probe(None, {}, Mixing(False, f"the probe did not run: {error}"))


class _Prober:
    def __init__(
        self, session: ModelSession, lines: Sequence[Mapping[str, Array]], clock: Clock, deadline_s: float
    ) -> None:
        self._session, self._clock, self._deadline_s = session, clock, deadline_s
        self._lines = _that_run(session, lines)
        self._alone: list[dict[str, bytes]] = []
        self._times: list[float] = []

    def probe(self) -> Probe:
        batch_s: dict[int, float] = {}
        for bucket in BUCKETS:
            if bucket > 1 and self._clock.monotonic_s() >= self._deadline_s:
                break
            try:
                batch_s[bucket] = self._try(bucket)
            except MixedRowsError as error:
                return Probe(self._run_s, {}, Mixing(False, str(error)))
        worth = tuple(b for b in batch_s if b == 1 or batch_s[b] <= WORTH_IT * b * self._run_s)
        if len(worth) < 2:
            return Probe(self._run_s, batch_s, Mixing(False, "rows may mix, but a batch saves no time"))
        return Probe(self._run_s, batch_s, Mixing(True, PROVEN, worth))

    @property
    def _run_s(self) -> float:
        return median(self._times)

    def _try(self, bucket: int) -> float:
        """Seconds of the faster of two runs of a bucket: rows in order, then each at another place."""
        while len(self._alone) < bucket:
            self._alone.append(self._run_alone(self._lines[len(self._alone)]))
        order = list(range(bucket))
        return min(self._compare(order), self._compare(order[bucket // 2 :] + order[: bucket // 2]))

    def _compare(self, order: Sequence[int]) -> float:
        names = self._lines[0].keys()
        together = {name: np.concatenate([self._lines[row][name] for row in order]) for name in names}
        answers, took_s = self._timed(together)
        for name, answer in answers.items():
            if answer.ndim == 0 or len(answer) != len(order):
                raise MixedRowsError(f"output '{name}' of a batch of {len(order)} has shape {list(answer.shape)}")
            for position, row in enumerate(order):
                if _bits(answer[position : position + 1]) != self._alone[row][name]:
                    raise MixedRowsError(
                        f"the bits of output '{name}' change at row {position} of a batch of {len(order)}"
                    )
        return took_s

    def _run_alone(self, line: Mapping[str, Array]) -> dict[str, bytes]:
        answers, took_s = self._timed(line)
        self._times.append(took_s)
        return {name: _bits(array) for name, array in answers.items()}

    def _timed(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], float]:
        start_s = self._clock.monotonic_s()
        answers = self._session.run(inputs)
        took_s = self._clock.monotonic_s() - start_s
        os.sched_yield()  # Linux lets a thread finish its slice of 3 ms; a request should not wait for so many runs
        return answers, took_s


def _bits(array: Array) -> bytes:
    """The bits of an array; every NaN counts as the same one."""
    if array.dtype.kind == "f":
        array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
    return array.tobytes()


def _follow(node: Node, known: dict[str, Tensor]) -> None:
    missing = [name for name in node.inputs if name and name not in known]
    if missing:
        raise MixedRowsError(f"operator {node.operator} takes '{missing[0]}', which nothing before it gives")
    if node.operator == "Constant" and not node.domain and node.is_plain and not node.graphs:
        results = [_constant_of(node)]
    else:
        arguments = [known[name] if name else None for name in node.inputs]
        numbers = numbers_of(node, arguments)
        results = [Tensor(shape) for shape in apply(node, arguments)] if numbers is None else [numbers]
    for name, result in zip(node.outputs, results, strict=False):
        if name in known:
            raise MixedRowsError(f"'{name}' is given twice")
        if name:
            known[name] = result


def _constant_of(node: Node) -> Tensor:
    if "value" in node.tensors:
        return _fixed(node.tensors["value"])
    if "value_int" in node.integers:
        return Tensor((), np.array(node.integers["value_int"], dtype=np.int64))
    if "value_ints" in node.lists:
        numbers = node.lists["value_ints"]
        return Tensor((len(numbers),), np.array(numbers, dtype=np.int64))
    return Tensor(None)


def _fixed(constant: Constant) -> Tensor:
    return Tensor(constant.shape, constant.value)


def _rows(name: str, dims: tuple[int | str, ...] | None) -> Tensor:
    if not dims or not isinstance(dims[0], str):
        raise MixedRowsError(f"input '{name}' has no open batch axis")
    rest = tuple(size for size in dims[1:] if isinstance(size, int) and size > 0)
    if len(rest) != len(dims) - 1:
        raise MixedRowsError(f"input '{name}' has open axes beside the batch, so not every shape can be probed")
    return Tensor((ROWS, *rest))


def _lines(inputs: Sequence[TensorSpec], count: int) -> list[dict[str, Array]]:
    """`count` requests of one row each: every scale, and among them rows of zeros, NaN and infinity."""
    for spec in inputs:
        if (
            spec.dtype in (STRING, BFLOAT16_NAME)
            or not spec.shape
            or spec.shape[0] is not None
            or None in spec.shape[1:]
        ):
            raise MixedRowsError(f"input '{spec.name}' is text or bfloat16, or has not exactly one open axis")
        if math.prod(size or 1 for size in spec.shape) * count > MAX_PROBE_ELEMENTS:
            raise MixedRowsError(f"input '{spec.name}' is too large to be probed in batches")
    return [{spec.name: _line(spec, row, place) for place, spec in enumerate(inputs)} for row in range(count)]


def _line(spec: TensorSpec, row: int, place: int) -> Array:
    shape = (1, *(size or 0 for size in spec.shape[1:]))
    dtype = np.dtype(spec.dtype)
    values = _noise(math.prod(shape), row + (place << 16)).reshape(shape)
    if dtype.kind != "f":
        return (values < 0).astype(dtype)
    values *= _SCALES[row % len(_SCALES)]
    if row % 16 in (5, 11, 14):
        values[...] = {5: np.nan, 11: np.inf, 14: 0.0}[row % 16]
    with np.errstate(over="ignore"):
        return values.astype(dtype)


def _noise(count: int, seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Numbers from -2 to 2, always the same (SplitMix64, Steele et al. 2014). numpy's generators would cost every
    server 2 MB and 25 ms of its start.
    """
    bits = (np.arange(count, dtype=np.uint64) + np.uint64(seed << 32)) * np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    bits = (bits ^ (bits >> np.uint64(31))) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-51 - 2.0


def _that_run(session: ModelSession, lines: Sequence[Mapping[str, Array]]) -> Sequence[Mapping[str, Array]]:
    """The lines, or zeros where the model itself refuses them (an index beyond a table of one row, say)."""
    try:
        for line in lines[:2]:
            session.run(line)
    except HoldfastError:
        return [{name: np.zeros_like(array) for name, array in line.items()} for line in lines]
    return lines
