"""Cases of functions of one value, activations, choices, softmax and reductions."""

from __future__ import annotations

from tests.vectors.autodiff.case import Case, mixed, node

SCALED = node("Mul", ["x", "w"], ["h"])
ROW = {"w": (4,)}
X = (5, 4)


def _unary() -> list[Case]:
    plain = [
        *((name, {}) for name in ("Neg", "Abs", "Exp", "Erf", "Sin", "Cos", "Sinh", "Cosh", "Atan", "Sigmoid", "Tanh")),
        *((name, {}) for name in ("Softplus", "Softsign", "Relu", "LeakyRelu", "Elu", "Selu", "Celu", "HardSigmoid")),
        *((name, {}) for name in ("HardSwish", "Mish", "Gelu")),
        ("Gelu", {"approximate": "tanh"}),
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.7}),
        ("Selu", {"alpha": 1.2, "gamma": 0.9}),
        ("Celu", {"alpha": 1.7}),
        ("HardSigmoid", {"alpha": 0.4, "beta": 0.3}),
        ("Cast", {"to": 1}),
    ]
    cases = []
    for operator, attributes in plain:
        name = "_".join([operator.lower(), *(f"{key}_{value}" for key, value in attributes.items())])
        cases.append(mixed(name, [SCALED, node(operator, ["h"], ["y"], name="op", **attributes)], ROW, X))
    for operator in ("Log", "Sqrt", "Reciprocal"):
        cases.append(mixed(operator.lower(), [SCALED, node(operator, ["h"], ["y"])], ROW, X, positive=True))
    small = [node("Tanh", ["h"], ["t"]), node("Tan", ["t"], ["y"])]
    cases.append(mixed("tan", [SCALED, *small], ROW, X))
    for operator in ("Asin", "Acos", "Atanh"):
        inside = [node("Tanh", ["h"], ["t"]), node("Mul", ["t", "c"], ["u"]), node(operator, ["u"], ["y"])]
        cases.append(mixed(operator.lower(), [SCALED, *inside], ROW, X, fixed={"c": 0.9}))
    cases.append(mixed("asinh", [SCALED, node("Asinh", ["h"], ["y"])], ROW, X))
    above = [SCALED, node("Add", ["h", "c"], ["t"]), node("Acosh", ["t"], ["y"])]
    cases.append(mixed("acosh", above, ROW, X, fixed={"c": 1.2}, positive=True))
    cases.append(mixed("swish", [SCALED, node("Swish", ["h"], ["y"], alpha=0.8)], ROW, X, opset=24))
    for operator in ("Sign", "Floor", "Ceil", "Round"):
        nodes = [SCALED, node(operator, ["h"], ["s"]), node("Add", ["h", "s"], ["y"])]
        cases.append(mixed(f"{operator.lower()}_is_flat", nodes, ROW, X))
    return cases


def _binary() -> list[Case]:
    cases = []
    for name, shape in (("same", (5, 4)), ("row", (4,)), ("column", (5, 1)), ("one", (1,))):
        divide = [node("Div", ["x", "w"], ["a"]), node("Div", ["w", "a"], ["y"])]
        cases.append(mixed(f"div_{name}", divide, {"w": shape}, X, positive=True, tied=("w",)))
        power = node("Pow", ["x", "w"], ["y"])
        cases.append(mixed(f"pow_{name}", [power], {"w": shape}, X, positive=True))
        for operator in ("Min", "Max"):
            nodes = [node(operator, ["x", "w"], ["y"])]
            cases.append(mixed(f"{operator.lower()}_{name}", nodes, {"w": shape}, X))
    for operator in ("Min", "Max", "Sum", "Mean"):
        nodes = [node(operator, ["x", "w", "v"], ["y"])]
        cases.append(mixed(f"{operator.lower()}_of_three", nodes, {"w": (4,), "v": (5, 1)}, X))
        cases.append(mixed(f"{operator.lower()}_of_one", [SCALED, node(operator, ["h"], ["y"])], ROW, X))
    for exponent in (2.0, 3.0, 0.5, -1.5):
        nodes = [SCALED, node("Pow", ["h", "e"], ["y"])]
        name = f"pow_constant_{exponent}"
        cases.append(mixed(name, nodes, ROW, X, fixed={"e": exponent}, positive=True))
    nodes = [SCALED, node("Pow", ["h", "e"], ["y"])]
    cases.append(mixed("pow_integer_exponent", nodes, ROW, X, fixed={"e": 2}))
    cases.append(mixed("pow_integer_exponent_3", nodes, ROW, X, fixed={"e": 3}))
    slope = [SCALED, node("PRelu", ["h", "slope"], ["y"])]
    cases.append(mixed("prelu_row", slope, {**ROW, "slope": (4,)}, X))
    cases.append(mixed("prelu_one", slope, {**ROW, "slope": (1,)}, X))
    cases.append(mixed("prelu_channels", slope, {"w": (3, 1, 2), "slope": (3, 1, 1)}, (2, 3, 2, 2)))
    return cases


def _choices() -> list[Case]:
    bounds = {"low": -0.5, "high": 0.7}
    picked = [node("Greater", ["x", "zero"], ["c"]), node("Where", ["c", "w", "x"], ["y"])]
    return [
        mixed("clip_both", [SCALED, node("Clip", ["h", "low", "high"], ["y"])], ROW, X, fixed=bounds),
        mixed("clip_low", [SCALED, node("Clip", ["h", "low"], ["y"])], ROW, X, fixed={"low": -0.2}),
        mixed("clip_high", [SCALED, node("Clip", ["h", "", "high"], ["y"])], ROW, X, fixed={"high": 0.3}),
        mixed("clip_unbounded", [SCALED, node("Clip", ["h"], ["y"])], ROW, X),
        mixed("where_row", picked, ROW, X, fixed={"zero": 0.0}),
        mixed("where_column", picked, {"w": (5, 1)}, X, fixed={"zero": 0.0}),
        mixed("where_same", picked, {"w": (5, 4)}, X, fixed={"zero": 0.0}),
    ]


def _softmaxes() -> list[Case]:
    cases = []
    for operator in ("Softmax", "LogSoftmax"):
        for axis in (-1, 1):
            nodes = [node("Mul", ["x", "w"], ["h"]), node(operator, ["h"], ["y"], axis=axis)]
            cases.append(mixed(f"{operator.lower()}_axis_{axis}", nodes, {"w": (4, 3)}, (3, 4, 3)))
        alone = [SCALED, node(operator, ["h"], ["y"])]
        cases.append(mixed(f"{operator.lower()}_2d", alone, ROW, X))
    for name, attributes, weights in (
        ("plain", {}, []),
        ("ignored", {"ignore_index": 1}, []),
        ("ignored_outside", {"ignore_index": -1}, []),
        ("weighted", {"ignore_index": 2}, ["cw"]),
    ):
        for reduction in ("none", "sum", "mean"):
            marks = [0, 1, 3, 1, -1 if name == "ignored_outside" else 2]
            made = node("SoftmaxCrossEntropyLoss", ["h", "t", *weights], ["l"], reduction=reduction, **attributes)
            end = [node("Unsqueeze", ["l", "one"], ["u"]), node("Mul", ["u", "x"], ["y"])]
            if reduction != "none":
                end = [node("Mul", ["l", "x"], ["y"])]
            fixed = {"t": marks, "one": [1]} if reduction == "none" else {"t": marks}
            shapes = {**ROW, **({"cw": (4,)} if weights else {})}
            cases.append(mixed(f"cross_entropy_{name}_{reduction}", [SCALED, made, *end], shapes, X, fixed=fixed))
    image = [
        node("Mul", ["x", "w"], ["h"]),
        node("SoftmaxCrossEntropyLoss", ["h", "t"], ["y"], reduction="none", ignore_index=0),
    ]
    marks = [[[0, 1], [2, 1]], [[2, 2], [1, 0]]]
    cases.append(mixed("cross_entropy_4d", image, {"w": (3, 1, 2)}, (2, 3, 2, 2), fixed={"t": marks}))
    return cases


def _reductions() -> list[Case]:
    cases = []
    signed = ("ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare")
    for operator in (*signed, "ReduceLogSum", "ReduceLogSumExp", "ReduceProd"):
        for keep in (0, 1):
            nodes = [node("Mul", ["x", "w"], ["h"]), node(operator, ["h", "axes"], ["y"], keepdims=keep)]
            name = f"{operator.lower()}_keep_{keep}"
            positive = operator in ("ReduceLogSum", "ReduceProd")
            cases.append(mixed(name, nodes, {"w": (4, 3)}, (2, 4, 3), fixed={"axes": [-1]}, positive=positive))
        several = [node("Mul", ["x", "w"], ["h"]), node(operator, ["h", "axes"], ["y"], keepdims=0)]
        name = f"{operator.lower()}_two_axes"
        positive = operator in ("ReduceLogSum", "ReduceProd")
        cases.append(mixed(name, several, {"w": (4, 3, 2)}, (2, 4, 3, 2), fixed={"axes": [1, 3]}, positive=positive))
    everything = [SCALED, node("ReduceMean", ["h"], ["r"], keepdims=0), node("Mul", ["r", "x"], ["y"])]
    cases.append(mixed("reducemean_of_all", everything, ROW, X))
    nothing = [SCALED, node("ReduceSum", ["h"], ["r"], noop_with_empty_axes=1), node("Mul", ["r", "x"], ["y"])]
    cases.append(mixed("reducesum_of_nothing", nothing, ROW, X))
    return cases


ELEMENTWISE_CASES = (*_unary(), *_binary(), *_choices(), *_softmaxes(), *_reductions())
