"""Gradients of RNN, LSTM and GRU by unrolling: both directions, initial states, every output.

Source: back-propagation through time (Werbos 1990). The number of steps is static, so the forward pass is written out
step by step, which hands over the gates; the products with the input, and all weight gradients, are one matrix product
over all steps. In a sequence that is shorter, steps behind its end leave the state as it was and give 0 (operator
specification of sequence_lens). Clipping, coupled gates and other activations are refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import TensorProto

from holdfast.autodiff.recurrent_cells import CELLS, Cell, CellWeights
from holdfast.autodiff.rule import GradientRule, NodeView, as_float, zeros
from holdfast.autodiff.writer import GraphWriter

X, W, R, B, LENGTHS, INITIAL, PEEPHOLES = 0, 1, 2, 3, 4, 5, 7
_DEFAULT_ACTIVATIONS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}


@dataclass(frozen=True, slots=True)
class _Net:
    """One direction of a node. `order` is the order of its time steps; x is float32[steps * batch, inputs]."""

    cell: Cell
    direction: int
    directions: int
    order: range
    batch: int
    inputs: int
    hidden: int
    x: str
    w: str
    r: str
    input_bias: str
    recurrent_bias: str
    peepholes: str
    lengths: str

    @property
    def weights(self) -> CellWeights:
        return CellWeights(self.r, self.recurrent_bias, self.hidden, self.peepholes)

    @property
    def steps(self) -> int:
        return len(self.order)


def _nets(view: NodeView, out: GraphWriter) -> list[_Net]:
    lengths = _lengths(view)
    steps, batch, inputs = view.input_shape(X)
    directions, _, hidden = view.input_shape(R)
    names = {"forward": (1,), "reverse": (-1,), "bidirectional": (1, -1)}[view.text("direction", "forward")]
    nets = []
    for index, sign in enumerate(names):
        cell = CELLS[_cell_name(view, index)]
        w, r, b = (_of_direction(view, out, which, index, directions) for which in (W, R, B))
        size = cell.gates * hidden
        halves = out.nodes_out("Split", [b, out.integers(size, size)], 2, axis=0) if b else ["", ""]
        adds_itself = view.node.op_type == "GRU"
        bias = halves[0] if adds_itself or not b else out.node("Add", halves)
        nets.append(
            _Net(
                cell=cell,
                direction=index,
                directions=directions,
                order=range(steps)[::sign],
                batch=batch,
                inputs=inputs,
                hidden=hidden,
                x=out.node("Reshape", [view.inputs[X], out.integers(steps * batch, inputs)]),
                w=w,
                r=r,
                input_bias=bias,
                recurrent_bias=halves[1] if adds_itself else "",
                peepholes=_of_direction(view, out, PEEPHOLES, index, directions),
                lengths=lengths,
            )
        )
    return nets


def _lengths(view: NodeView) -> str:
    """The input with how many steps each row has; "" where all have all.

    Raises: AutodiffError: a form of the operator without a rule.
    """
    for name in ("clip", "input_forget", "layout"):
        if view.has_attribute(name) and (view.integer(name, 0) or view.real(name, 0.0)):
            raise view.refusal(f"the attribute {name} has no rule")
    if not view.has(LENGTHS):
        return ""
    known = view.constants.get(view.inputs[LENGTHS])
    is_whole = known is not None and bool((known == view.input_shape(X)[0]).all())
    return "" if is_whole else view.inputs[LENGTHS]


def _cell_name(view: NodeView, index: int) -> str:
    operator = view.node.op_type
    expected = _DEFAULT_ACTIVATIONS[operator]
    given = next((tuple(s.decode() for s in a.strings) for a in view.node.attribute if a.name == "activations"), ())
    found = given[index * len(expected) : (index + 1) * len(expected)] or expected
    if operator == "RNN" and found in (("Tanh",), ("Relu",)):
        return f"RNN {found[0]}"
    if tuple(found) != expected:
        raise view.refusal(f"the activations {', '.join(found)} have no rule")
    if operator == "LSTM" and view.has(PEEPHOLES):
        return "LSTM peephole"
    return "GRU linear" if operator == "GRU" and view.integer("linear_before_reset", 0) else operator


def _of_direction(view: NodeView, out: GraphWriter, which: int, index: int, directions: int) -> str:
    """The slice of an input that belongs to one direction, without that axis; "" for an input that isn't there."""
    if not view.has(which):
        return ""
    return _picked(out, view.inputs[which], 0, index, directions, view.input_shape(which))


def _picked(out: GraphWriter, value: str, axis: int, index: int, size: int, shape: Sequence[int]) -> str:
    if size > 1:
        value = out.nodes_out("Split", [value, out.integers(*[1] * size)], size, axis=axis)[index]
    return out.node("Reshape", [value, out.integers(*shape[:axis], *shape[axis + 1 :])])


def _initial(view: NodeView, out: GraphWriter, net: _Net) -> list[str]:
    found = []
    for state in range(net.cell.states):
        given = _of_direction(view, out, INITIAL + state, net.direction, net.directions)
        found.append(given or zeros(out, (net.batch, net.hidden)))
    return found


def _forward(view: NodeView, out: GraphWriter) -> tuple[str, ...]:
    """Saves, per direction and step in its order: the states before the step, and what the cell keeps."""
    saved: list[str] = []
    sequences, lasts = [], []
    for net in _nets(view, out):
        bias = [net.input_bias] if net.input_bias else []
        share = out.node("Gemm", [net.x, net.w, *bias], transB=1)
        shares = _in_steps(out, share, net)
        states = _initial(view, out, net)
        made = [""] * net.steps
        for t in net.order:
            saved += states
            after, kept = net.cell.step(out, net.weights, shares[t], states)
            saved += kept
            lives, ended = _lives(out, net, t)
            states = [_blended(out, lives, ended, new, old) for new, old in zip(after, states, strict=True)]
            made[t] = out.node("Mul", [after[0], lives]) if lives else after[0]
        shape = out.integers(net.steps, 1, net.batch, net.hidden)
        sequences.append(out.node("Reshape", [_joined(out, made), shape]))
        lasts.append(states)
    _name_outputs(view, out, sequences, lasts)
    return tuple(saved)


def _lives(out: GraphWriter, net: _Net, t: int) -> tuple[str, str]:
    """float32[batch, 1]: 1 for the rows that have a step t, and 1 for the others; "" where all rows have all steps."""
    if not net.lengths:
        return "", ""
    lengths = out.node("Reshape", [out.node("Cast", [net.lengths], to=int(TensorProto.INT64)), out.integers(-1, 1)])
    lives = as_float(out, out.node("Greater", [lengths, out.integer(t)]))
    return lives, out.node("Sub", [out.scalar(1.0), lives])


def _blended(out: GraphWriter, lives: str, ended: str, new: str, old: str) -> str:
    """`new` for the rows that have this step, `old` for the others."""
    return out.node("Add", [out.node("Mul", [new, lives]), out.node("Mul", [old, ended])]) if lives else new


def _name_outputs(view: NodeView, out: GraphWriter, sequences: list[str], lasts: list[list[str]]) -> None:
    for index, name in enumerate(view.outputs):
        if not name:
            continue
        if index == 0:
            out.node_as("Concat", sequences, [name], axis=1)
        else:
            parts = [out.node("Unsqueeze", [states[index - 1], out.integers(0)]) for states in lasts]
            out.node_as("Concat", parts, [name], axis=0)


def _backward(view: NodeView, out: GraphWriter, gradients: Sequence[str | None]) -> list[str | None]:
    saved = list(view.saved)
    parts = [_direction_back(view, out, net, gradients, saved) for net in _nets(view, out)]
    found: list[str | None] = [None] * len(view.inputs)
    if view.wants(X):
        dx = parts[0][X] if len(parts) == 1 else out.node("Sum", [part[X] for part in parts])
        found[X] = out.node("Reshape", [dx, out.integers(*view.input_shape(X))])
    for index in (W, R, B, INITIAL, INITIAL + 1, PEEPHOLES):
        if view.wants(index):
            rows = [out.node("Unsqueeze", [part[index], out.integers(0)]) for part in parts]
            found[index] = rows[0] if len(rows) == 1 else out.node("Concat", rows, axis=0)
    return found


def _direction_back(
    view: NodeView, out: GraphWriter, net: _Net, gradients: Sequence[str | None], saved: list[str]
) -> dict[int, str]:
    """Gradients of one direction by input. Takes its own names off the front of `saved`."""
    cell, width = net.cell, net.cell.states + net.cell.kept
    own = [saved[i * width : (i + 1) * width] for i in range(net.steps)]
    del saved[: net.steps * width]
    from_outputs = _step_gradients(view, out, net, gradients)
    flowing = _last_gradients(out, net, gradients)
    d_shares = [""] * net.steps
    products: list[list[tuple[str, str]]] = []
    seen: list[str] = []
    for position in reversed(range(net.steps)):
        t = net.order[position]
        if from_outputs:  # behind a row's end nobody made the output, and what flows into the state is cut off below
            flowing[0] = out.node("Add", [flowing[0], _kept(out, net, t, from_outputs[t])])
        before, kept = own[position][: cell.states], own[position][cell.states :]
        back = cell.step_back(out, net.weights, kept, before, [_kept(out, net, t, each) for each in flowing])
        ended = _lives(out, net, t)[1]
        passing = [out.node("Mul", [each, ended]) if ended else "" for each in flowing]
        flowing = [out.node("Add", pair) if pair[1] else pair[0] for pair in zip(back.d_states, passing, strict=True)]
        d_shares[t] = back.d_input
        products.append(list(back.through_recurrent))
        seen.append(back.d_peepholes)
    share = _joined(out, d_shares)
    blocks = []
    for part in zip(*products, strict=True):
        blocks.append((_joined(out, [d for d, _ in part]), _joined(out, [value for _, value in part])))
    first = out.node("ReduceSum", [share, out.integers(0)], keepdims=0)
    second = [out.node("ReduceSum", [d, out.integers(0)], keepdims=0) for d, _ in blocks]
    return {
        X: out.node("MatMul", [share, net.w]),
        W: out.node("Gemm", [share, net.x], transA=1),
        R: _joined(out, [out.node("Gemm", [d, value], transA=1) for d, value in blocks]),
        B: _joined(out, [first, *second]),
        **{INITIAL + state: gradient for state, gradient in enumerate(flowing)},
        **(
            {PEEPHOLES: out.node("ReduceSum", [_joined(out, seen), out.integers(0)], keepdims=0)}
            if net.peepholes
            else {}
        ),
    }


def _kept(out: GraphWriter, net: _Net, t: int, gradient: str) -> str:
    """A gradient of the rows that have a step t."""
    lives, _ = _lives(out, net, t)
    return out.node("Mul", [gradient, lives]) if lives else gradient


def _step_gradients(view: NodeView, out: GraphWriter, net: _Net, gradients: Sequence[str | None]) -> list[str]:
    """What flows back into the state of each step from the output Y, by time; empty if nothing does."""
    dy = gradients[0]
    if dy is None:
        return []
    shape = view.output_shape(0)
    own = _picked(out, dy, 1, net.direction, net.directions, shape)
    return _in_steps(out, out.node("Reshape", [own, out.integers(net.steps * net.batch, net.hidden)]), net)


def _last_gradients(out: GraphWriter, net: _Net, gradients: Sequence[str | None]) -> list[str]:
    found = []
    for state in range(net.cell.states):
        gradient = gradients[1 + state] if 1 + state < len(gradients) else None
        shape = (net.directions, net.batch, net.hidden)
        if gradient is None:
            found.append(zeros(out, shape[1:]))
        else:
            found.append(_picked(out, gradient, 0, net.direction, net.directions, shape))
    return found


def _in_steps(out: GraphWriter, value: str, net: _Net) -> list[str]:
    """float32[steps * batch, n] cut into its steps."""
    if net.steps == 1:
        return [value]
    return out.nodes_out("Split", [value, out.integers(*[net.batch] * net.steps)], net.steps, axis=0)


def _joined(out: GraphWriter, parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else out.node("Concat", parts, axis=0)


_THROUGH_TIME = "through time, step by step; dW, dR, dB: one product over all steps"

RULES = (
    GradientRule("LSTM", f"dc = dc' f + dh o (1 - tanh(c)^2), {_THROUGH_TIME}", _backward, (4,), _forward),
    GradientRule("GRU", f"dh = dh' z + through z, r and candidate, {_THROUGH_TIME}", _backward, (4,), _forward),
    GradientRule("RNN", f"dh = f'(h) dh' R, {_THROUGH_TIME}", _backward, (4,), _forward),
)
