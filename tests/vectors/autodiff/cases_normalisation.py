"""Cases of the normalisations, and of Dropout as it is served."""

from __future__ import annotations

from math import prod

from tests.vectors.autodiff.case import Case, mixed, node

IMAGE = (3, 4, 3, 2)


def _batch() -> list[Case]:
    names = {"s": (4,), "b": (4,), "mean": (4,), "var": (4,)}
    made = node("BatchNormalization", ["x", "s", "b", "mean", "var"], ["y"], name="op", epsilon=1e-3)
    return [
        mixed("batch_norm_frozen_4d", [made], names, IMAGE),
        mixed("batch_norm_frozen_2d", [made], names, (5, 4)),
        mixed("batch_norm_frozen_3d", [made], names, (3, 4, 5)),
    ]


def _layer() -> list[Case]:
    cases = []
    for name, shape, axis, scale in (
        ("last", (3, 4, 6), -1, (6,)),
        ("two_axes", (3, 4, 6), 1, (4, 6)),
        ("broadcast_scale", (3, 4, 6), 1, (6,)),
        ("2d", (3, 6), -1, (6,)),
    ):
        both = node("LayerNormalization", ["x", "s", "b"], ["y"], axis=axis)
        cases.append(mixed(f"layer_norm_{name}", [both], {"s": scale, "b": scale}, shape))
        alone = node("LayerNormalization", ["x", "s"], ["y"], axis=axis, epsilon=1e-3)
        cases.append(mixed(f"layer_norm_{name}_without_bias", [alone], {"s": scale}, shape))
        root = node("RMSNormalization", ["x", "s"], ["y"], axis=axis, epsilon=1e-4)
        cases.append(mixed(f"rms_norm_{name}", [root], {"s": scale}, shape, opset=23))
    return cases


def _instance_and_group() -> list[Case]:
    cases = []
    channels = {"s": (4,), "b": (4,)}
    for name, shape in (("1d", (2, 4, 5)), ("2d", IMAGE), ("3d", (2, 4, 2, 3, 2))):
        made = node("InstanceNormalization", ["x", "s", "b"], ["y"])
        cases.append(mixed(f"instance_norm_{name}", [made], channels, shape))
        for groups in (1, 2, 4):
            made = node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=groups)
            cases.append(mixed(f"group_norm_{name}_{groups}", [made], channels, shape, opset=21, width=prod(shape[1:])))
    return cases


def _response() -> list[Case]:
    cases = []
    for size in (1, 3, 5):  # the runtime has odd windows only
        made = node("LRN", ["h"], ["y"], size=size, alpha=0.5, beta=0.6, bias=1.5)
        nodes = [node("Mul", ["x", "w"], ["h"]), made]
        cases.append(mixed(f"lrn_{size}", nodes, {"w": (6, 1, 1)}, (2, 6, 2, 3)))
    return cases


def _dropout() -> list[Case]:
    scaled = node("Mul", ["x", "w"], ["h"])
    return [
        mixed("dropout_served", [scaled, node("Dropout", ["h"], ["y"])], {"w": (4,)}, (3, 4)),
        mixed(
            "dropout_served_ratio", [scaled, node("Dropout", ["h", "r"], ["y"])], {"w": (4,)}, (3, 4), fixed={"r": 0.3}
        ),
    ]


NORMALISATION_CASES = (*_batch(), *_layer(), *_instance_and_group(), *_response(), *_dropout())
