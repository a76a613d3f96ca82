"""One step of an RNN, LSTM or GRU, forwards and backwards.

Source: the equations of the ONNX operator specification (gate order iofc for LSTM, zrh for GRU; Hochreiter and
Schmidhuber 1997 with forget gates, Cho et al. 2014), differentiated by the chain rule. Everything is [batch, units].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from holdfast.autodiff.rule import kept_where
from holdfast.autodiff.writer import GraphWriter


@dataclass(frozen=True, slots=True)
class CellWeights:
    """recurrent: float32[gates * hidden, hidden]. recurrent_bias: float32[gates * hidden] or "", where a cell adds it
    itself (GRU); else it is in the input's share already. `hidden` is the number of units. peepholes:
    float32[3 * hidden], of the gates i, o and f, or "" where the gates do not see the cell's state."""

    recurrent: str
    recurrent_bias: str
    hidden: int
    peepholes: str = ""


@dataclass(frozen=True, slots=True)
class BackStep:
    """d_input: gradient of the input's share of all gates. through_recurrent: (gradient of the product, what was
    multiplied with the recurrent weight), gates in order. d_states: gradients of the states before the step.
    d_peepholes: those of the peepholes by each row, or ""."""

    d_input: str
    through_recurrent: Sequence[tuple[str, str]]
    d_states: list[str]
    d_peepholes: str = ""


# (writer, weights, input's share of the gates, states before) -> (states after, names kept for the way back)
Step = Callable[[GraphWriter, CellWeights, str, Sequence[str]], tuple[list[str], tuple[str, ...]]]
# (writer, weights, names kept, states before, gradients of the states after) -> BackStep
StepBack = Callable[[GraphWriter, CellWeights, Sequence[str], Sequence[str], Sequence[str]], BackStep]


@dataclass(frozen=True, slots=True)
class Cell:
    """`gates` blocks in its weights, `states` carried from step to step, `kept` names saved per step."""

    gates: int
    states: int
    kept: int
    step: Step
    step_back: StepBack


def _lstm(
    out: GraphWriter, weights: CellWeights, share: str, states: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    h, c = states
    n = weights.hidden
    gates = out.node("Gemm", [h, weights.recurrent, share], transB=1)
    raw, raw_g = out.nodes_out("Split", [gates, out.integers(3 * n, n)], 2, axis=1)
    s, g = out.node("Sigmoid", [raw]), out.node("Tanh", [raw_g])
    i, o, f = out.nodes_out("Split", [s, out.integers(n, n, n)], 3, axis=1)
    new_c = out.node("Add", [out.node("Mul", [f, c]), out.node("Mul", [i, g])])
    t = out.node("Tanh", [new_c])
    return [out.node("Mul", [o, t]), new_c], (s, i, o, f, g, t)


def _lstm_back(
    out: GraphWriter, weights: CellWeights, kept: Sequence[str], states: Sequence[str], flowing: Sequence[str]
) -> BackStep:
    s, i, o, f, g, t = kept
    h, c = states
    dh, dc = flowing
    dc = out.node("Add", [dc, out.node("Mul", [out.node("Mul", [dh, o]), _tanh_slope(out, t)])])
    gates = [out.node("Mul", pair) for pair in ([dc, g], [dh, t], [dc, c])]  # i, o, f
    raw = out.node("Mul", [out.node("Concat", gates, axis=1), _logistic_slope(out, s)])
    raw_g = out.node("Mul", [out.node("Mul", [dc, i]), _tanh_slope(out, g)])
    d_gates = out.node("Concat", [raw, raw_g], axis=1)
    d_h = out.node("MatMul", [d_gates, weights.recurrent])
    return BackStep(d_gates, [(d_gates, h)], [d_h, out.node("Mul", [dc, f])])


def _peephole_lstm(
    out: GraphWriter, weights: CellWeights, share: str, states: Sequence[str]
) -> tuple[list[str], tuple[str, ...]]:
    """The gates i and f see the state before the step, o the one after it (Gers and Schmidhuber 2000)."""
    h, c = states
    n = weights.hidden
    p_i, p_o, p_f = _thirds(out, weights.peepholes, n)
    gates = out.node("Gemm", [h, weights.recurrent, share], transB=1)
    raw_i, raw_o, raw_f, raw_g = out.nodes_out("Split", [gates, out.integers(n, n, n, n)], 4, axis=1)
    i = out.node("Sigmoid", [out.node("Add", [raw_i, out.node("Mul", [p_i, c])])])
    f = out.node("Sigmoid", [out.node("Add", [raw_f, out.node("Mul", [p_f, c])])])
    g = out.node("Tanh", [raw_g])
    new_c = out.node("Add", [out.node("Mul", [f, c]), out.node("Mul", [i, g])])
    o = out.node("Sigmoid", [out.node("Add", [raw_o, out.node("Mul", [p_o, new_c])])])
    t = out.node("Tanh", [new_c])
    return [out.node("Mul", [o, t]), new_c], (i, o, f, g, t, new_c)


def _peephole_lstm_back(
    out: GraphWriter, weights: CellWeights, kept: Sequence[str], states: Sequence[str], flowing: Sequence[str]
) -> BackStep:
    i, o, f, g, t, new_c = kept
    h, c = states
    dh, dc = flowing
    p_i, p_o, p_f = _thirds(out, weights.peepholes, weights.hidden)
    raw_o = out.node("Mul", [out.node("Mul", [dh, t]), _logistic_slope(out, o)])
    through_h = out.node("Mul", [out.node("Mul", [dh, o]), _tanh_slope(out, t)])
    dc = out.node("Sum", [dc, through_h, out.node("Mul", [raw_o, p_o])])
    raw_i = out.node("Mul", [out.node("Mul", [dc, g]), _logistic_slope(out, i)])
    raw_f = out.node("Mul", [out.node("Mul", [dc, c]), _logistic_slope(out, f)])
    raw_g = out.node("Mul", [out.node("Mul", [dc, i]), _tanh_slope(out, g)])
    d_gates = out.node("Concat", [raw_i, raw_o, raw_f, raw_g], axis=1)
    d_c = out.node("Sum", [out.node("Mul", pair) for pair in ([dc, f], [raw_i, p_i], [raw_f, p_f])])
    seen = [out.node("Mul", pair) for pair in ([raw_i, c], [raw_o, new_c], [raw_f, c])]
    d_h = out.node("MatMul", [d_gates, weights.recurrent])
    return BackStep(d_gates, [(d_gates, h)], [d_h, d_c], out.node("Concat", seen, axis=1))


def _thirds(out: GraphWriter, value: str, size: int) -> list[str]:
    return out.nodes_out("Split", [value, out.integers(size, size, size)], 3, axis=0)


def _simple(activation: str) -> Step:
    def step(
        out: GraphWriter, weights: CellWeights, share: str, states: Sequence[str]
    ) -> tuple[list[str], tuple[str, ...]]:
        h = out.node(activation, [out.node("Gemm", [states[0], weights.recurrent, share], transB=1)])
        return [h], (h,)

    return step


def _simple_back(slope: Callable[[GraphWriter, str, str], str]) -> StepBack:
    def back(
        out: GraphWriter, weights: CellWeights, kept: Sequence[str], states: Sequence[str], flowing: Sequence[str]
    ) -> BackStep:
        d_raw = slope(out, flowing[0], kept[0])
        return BackStep(d_raw, [(d_raw, states[0])], [out.node("MatMul", [d_raw, weights.recurrent])])

    return back


def _gru(*, linear_before_reset: bool) -> Step:
    """h' = (1 - z) n + z h; n = tanh(x + (r h) R + b), or with linear_before_reset tanh(x + r (h R + b))."""

    def step(
        out: GraphWriter, weights: CellWeights, share: str, states: Sequence[str]
    ) -> tuple[list[str], tuple[str, ...]]:
        (h,) = states
        n = weights.hidden
        share_zr, share_n = out.nodes_out("Split", [share, out.integers(2 * n, n)], 2, axis=1)
        r_zr, r_n = _gru_parts(out, weights.recurrent, n)
        b_zr, b_n = _gru_parts(out, weights.recurrent_bias, n) if weights.recurrent_bias else ("", "")
        zr = out.node("Sigmoid", [out.node("Add", [_product(out, h, r_zr, b_zr), share_zr])])
        z, r = out.nodes_out("Split", [zr, out.integers(n, n)], 2, axis=1)
        if linear_before_reset:
            inner = _product(out, h, r_n, b_n)
            raw = out.node("Add", [share_n, out.node("Mul", [r, inner])])
        else:
            inner = out.node("Mul", [r, h])
            raw = out.node("Add", [share_n, _product(out, inner, r_n, b_n)])
        candidate = out.node("Tanh", [raw])
        change = out.node("Mul", [z, out.node("Sub", [h, candidate])])
        return [out.node("Add", [candidate, change])], (zr, z, r, candidate, inner)

    return step


def _gru_back(*, linear_before_reset: bool) -> StepBack:
    def back(
        out: GraphWriter, weights: CellWeights, kept: Sequence[str], states: Sequence[str], flowing: Sequence[str]
    ) -> BackStep:
        zr, z, r, candidate, inner = kept
        (h,), (dh,) = states, flowing
        r_zr, r_n = _gru_parts(out, weights.recurrent, weights.hidden)
        dz = out.node("Mul", [dh, out.node("Sub", [h, candidate])])
        d_candidate = out.node("Mul", [dh, out.node("Sub", [out.scalar(1.0), z])])
        d_raw = out.node("Mul", [d_candidate, _tanh_slope(out, candidate)])
        if linear_before_reset:
            d_inner = out.node("Mul", [d_raw, r])
            dr, pair = out.node("Mul", [d_raw, inner]), (d_inner, h)
            through = out.node("MatMul", [d_inner, r_n])
        else:
            d_inner = out.node("MatMul", [d_raw, r_n])
            dr, pair = out.node("Mul", [d_inner, h]), (d_raw, inner)
            through = out.node("Mul", [d_inner, r])
        d_zr = out.node("Mul", [out.node("Concat", [dz, dr], axis=1), _logistic_slope(out, zr)])
        d_h = out.node("Sum", [out.node("Mul", [dh, z]), out.node("MatMul", [d_zr, r_zr]), through])
        return BackStep(out.node("Concat", [d_zr, d_raw], axis=1), [(d_zr, h), pair], [d_h])

    return back


def _gru_parts(out: GraphWriter, value: str, hidden: int) -> tuple[str, str]:
    """The blocks of z and r, and the block of the candidate."""
    first, second = out.nodes_out("Split", [value, out.integers(2 * hidden, hidden)], 2, axis=0)
    return first, second


def _product(out: GraphWriter, value: str, weight: str, bias: str) -> str:
    return out.node("Gemm", [value, weight, *([bias] if bias else [])], transB=1)


def _tanh_slope(out: GraphWriter, y: str) -> str:
    return out.node("Sub", [out.scalar(1.0), out.node("Mul", [y, y])])


def _logistic_slope(out: GraphWriter, y: str) -> str:
    return out.node("Mul", [y, out.node("Sub", [out.scalar(1.0), y])])


def _through_tanh(out: GraphWriter, dy: str, y: str) -> str:
    return out.node("Mul", [dy, _tanh_slope(out, y)])


def _through_relu(out: GraphWriter, dy: str, y: str) -> str:
    return kept_where(out, out.node("Greater", [y, out.scalar(0.0)]), dy)


CELLS: Mapping[str, Cell] = MappingProxyType(
    {
        "LSTM": Cell(4, 2, 6, _lstm, _lstm_back),
        "LSTM peephole": Cell(4, 2, 6, _peephole_lstm, _peephole_lstm_back),
        "GRU": Cell(3, 1, 5, _gru(linear_before_reset=False), _gru_back(linear_before_reset=False)),
        "GRU linear": Cell(3, 1, 5, _gru(linear_before_reset=True), _gru_back(linear_before_reset=True)),
        "RNN Tanh": Cell(1, 1, 1, _simple("Tanh"), _simple_back(_through_tanh)),
        "RNN Relu": Cell(1, 1, 1, _simple("Relu"), _simple_back(_through_relu)),
    }
)
