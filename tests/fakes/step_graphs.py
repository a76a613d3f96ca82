"""Hand-made step graphs of one parameter `w`, to test what a trainer does with the state of an optimizer."""

from __future__ import annotations

from onnx import NodeProto, TensorProto, helper

BATCH = 4


def momentum_step() -> bytes:
    """w.momentum.new = w.momentum + 1; w.new = w - learning_rate * w.momentum.new; the loss is the mean of x."""
    nodes = [
        helper.make_node("Add", ["w.momentum", "one"], ["w.momentum.new"]),
        helper.make_node("Mul", ["learning_rate", "w.momentum.new"], ["change"]),
        helper.make_node("Sub", ["w", "change"], ["w.new"]),
    ]
    return _model(nodes, inputs=("w", "w.momentum"), outputs=("w.momentum.new", "w.new"))


def anchored_step() -> bytes:
    """w.new = w.anchor + learning_rate: however many steps, the result is one step from the start."""
    nodes = [helper.make_node("Add", ["w.anchor", "learning_rate"], ["w.new"])]
    return _model(
        [*nodes, helper.make_node("Identity", ["w"], ["unused"])], inputs=("w", "w.anchor"), outputs=("w.new",)
    )


def noisy_step() -> bytes:
    """w.new = w + mean of the noise that the trainer draws."""
    nodes = [
        helper.make_node("ReduceMean", ["drop.uniform"], ["mean"], keepdims=0),
        helper.make_node("Add", ["w", "mean"], ["w.new"]),
    ]
    return _model(nodes, inputs=("w",), outputs=("w.new",), more=(_value("drop.uniform", (BATCH, 3)),))


def evaluation() -> bytes:
    """The loss is the sum of w, once per sample; no prediction is right."""
    nodes = [
        helper.make_node("Not", [_IGNORED], ["counts"]),
        helper.make_node("Equal", ["labels", "minus_one"], [_IGNORED]),
        helper.make_node("Cast", ["counts"], ["ones"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["ones"], ["count"], keepdims=0),
        helper.make_node("Cast", ["count"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["w"], ["total"], keepdims=0),
        helper.make_node("Mul", ["total", "number"], ["loss_sum"]),
        helper.make_node("Sub", ["count", "count"], ["correct"]),
    ]
    nodes[0], nodes[1] = nodes[1], nodes[0]
    graph = helper.make_graph(
        nodes,
        "evaluate",
        [_value("w", (2,)), _value("x", (BATCH, 1)), _integers("labels", (BATCH,))],
        [_value("loss_sum", ()), _integers("correct", ()), _integers("count", ())],
        [helper.make_tensor("minus_one", TensorProto.INT64, (), [-1])],
    )
    return _serialized(graph)


_IGNORED = "ignored"


def _model(
    nodes: list[NodeProto], *, inputs: tuple[str, ...], outputs: tuple[str, ...], more: tuple[object, ...] = ()
) -> bytes:
    graph = helper.make_graph(
        [*nodes, helper.make_node("ReduceMean", ["x"], ["loss"], keepdims=0)],
        "train",
        [
            *(_value(name, (2,)) for name in inputs),
            *more,
            _value("x", (BATCH, 1)),
            _integers("labels", (BATCH,)),
            _value("learning_rate", ()),
        ],
        [*(_value(name, (2,)) for name in outputs), _value("loss", ())],
        [helper.make_tensor("one", TensorProto.FLOAT, (), [1.0])],
    )
    return _serialized(graph)


def _value(name: str, shape: tuple[int, ...]) -> object:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _integers(name: str, shape: tuple[int, ...]) -> object:
    return helper.make_tensor_value_info(name, TensorProto.INT64, shape)


def _serialized(graph: object) -> bytes:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()
