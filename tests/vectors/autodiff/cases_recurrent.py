"""Cases of RNN, LSTM and GRU: directions, biases, initial states, and every output taking part in the loss."""

from __future__ import annotations

from onnx import NodeProto, TensorProto
from tests.vectors.autodiff.case import Case, mixed, node

STEPS, BATCH, INPUTS, HIDDEN = 4, 2, 3, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TO_STEPS = node("Transpose", ["x"], ["steps"], perm=[1, 0, 2])


def _case(
    name: str,
    operator: str,
    *,
    bias: bool = True,
    initial: bool = False,
    lengths: tuple[int, ...] = (),
    peepholes: bool = False,
    use: str = "Y",
    **attributes: object,
) -> Case:
    """`use` names the outputs that the loss sees, joined with +."""
    directions = 2 if attributes.get("direction") == "bidirectional" else 1
    size = GATES[operator] * HIDDEN
    weights: dict[str, tuple[int, ...]] = {"W": (directions, size, INPUTS), "R": (directions, size, HIDDEN)}
    inputs = ["steps", "W", "R", "B" if bias else "", ""]
    if bias:
        weights["B"] = (directions, 2 * size)
    states = ["h0", "c0"] if operator == "LSTM" else ["h0"]
    if initial:
        inputs += states
        weights.update(dict.fromkeys(states, (directions, BATCH, HIDDEN)))
    if peepholes:
        inputs += [""] * (7 - len(inputs)) + ["P"]
        weights["P"] = (directions, 3 * HIDDEN)
    before = [TO_STEPS]
    if lengths:  # int32, as the operator wants them
        inputs[4] = "n"
        before.append(node("Cast", ["lengths"], ["n"], to=TensorProto.INT32))
    wanted = use.split("+")
    outputs = [each if each in wanted else "" for each in ("Y", "Y_h", "Y_c")][: 3 if operator == "LSTM" else 2]
    while not outputs[-1]:
        outputs.pop()
    while not inputs[-1]:
        inputs.pop()
    made = node(operator, inputs, outputs, name="op", hidden_size=HIDDEN, **attributes)
    fixed = {"lengths": list(lengths)} if lengths else {}
    return mixed(name, [*before, made, *_joined(wanted)], weights, (BATCH, STEPS, INPUTS), fixed=fixed)


def _joined(wanted: list[str]) -> list[NodeProto]:
    """Batch first and flat, whatever of the outputs is wanted, one behind the other."""
    nodes, parts = [], []
    for name in wanted:
        order = [2, 0, 1, 3] if name == "Y" else [1, 0, 2]
        nodes.append(node("Transpose", [name], [f"{name}_first"], perm=order))
        nodes.append(node("Flatten", [f"{name}_first"], [f"{name}_flat"], axis=1))
        parts.append(f"{name}_flat")
    return [*nodes, node("Concat", parts, ["y"], axis=1)]


def _cases() -> list[Case]:
    cases = []
    forms = [
        ("lstm", "LSTM", {}),
        ("gru", "GRU", {}),
        ("gru_linear", "GRU", {"linear_before_reset": 1}),
        ("rnn", "RNN", {}),
    ]
    for name, operator, attributes in forms:
        cases.append(_case(name, operator, **attributes))
        cases.append(_case(f"{name}_last_state", operator, use="Y_h", **attributes))
        cases.append(_case(f"{name}_without_bias", operator, bias=False, use="Y+Y_h", **attributes))
        cases.append(_case(f"{name}_initial", operator, initial=True, **attributes))
        cases.append(_case(f"{name}_reverse", operator, direction="reverse", use="Y+Y_h", **attributes))
        cases.append(_case(f"{name}_bidirectional", operator, direction="bidirectional", initial=True, **attributes))
    for name, operator, attributes in forms:
        short = {"lengths": (STEPS - 2, STEPS), "initial": True, **attributes}
        cases.append(_case(f"lengths_{name}", operator, use="Y+Y_h", **short))
        cases.append(_case(f"lengths_{name}_both_ways", operator, use="Y+Y_h", direction="bidirectional", **short))
    cases.append(_case("lengths_lstm_cell_state", "LSTM", lengths=(1, 3), use="Y_h+Y_c", direction="reverse"))
    cases.append(_case("lstm_peepholes", "LSTM", peepholes=True, use="Y+Y_c"))
    both = {"direction": "bidirectional", "initial": True, "use": "Y+Y_h+Y_c"}
    cases.append(_case("lstm_peepholes_both_ways", "LSTM", peepholes=True, **both))
    cases.append(_case("lengths_lstm_peepholes", "LSTM", peepholes=True, bias=False, lengths=(4, 1), **both))
    cases.append(_case("lstm_cell_state", "LSTM", use="Y_c"))
    cases.append(_case("lstm_all_outputs", "LSTM", use="Y+Y_h+Y_c", initial=True, direction="bidirectional"))
    cases.append(_case("rnn_relu", "RNN", activations=["Relu"]))
    return cases


RECURRENT_CASES = tuple(_cases())
