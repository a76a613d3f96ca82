"""The nine light models of the onnx package: all build, and their gradients are right in whole.

Their weights are nodes that make constants; the constants become initializers, drawn anew from a seed.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ad
import pytest
from tests.fakes.light_models import LIGHT_MODELS, redrawn
from tests.fakes.step_runs import session, step_gradients, trainable_of

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import join_weights, split_weights

GROUPED = {"light_bvlc_alexnet", "light_shufflenet"}  # onnx-ad has no gradient by the weight of a grouped convolution
# Relative 2-norm over the whole gradient, against another engine. Measured 2e-7 to 2e-5: among millions of Relu inputs,
# rounding puts one or two on the other side of 0. A wrong rule is off by more than 1e-2.
TOLERANCE = 5e-5
DIFFERENCE_STEP, DIFFERENCE_TOLERANCE = 1e-3, 1e-2  # float32 sees kinks and rounding; a wrong rule is off by far more


def test_the_collection_is_there() -> None:
    assert len(LIGHT_MODELS) == 9


@pytest.mark.slow
@pytest.mark.parametrize("name", LIGHT_MODELS)
def test_light_model_learns_as_differences_and_onnx_ad_say(name: str) -> None:
    model = redrawn(name)
    graphs, weights = build_graphs(model, batch=1), split_weights(model).weights
    data = graphs.data_inputs[0]
    x = np.random.default_rng(1).standard_normal(data.shape, dtype=np.float32)
    feeds = {data.name: x, "labels": np.array([3])}

    gradients, _, loss = step_gradients(graphs, weights, feeds)

    norm = float(np.sqrt(sum((gradient**2).sum() for gradient in gradients.values())))
    before = trainable_of(graphs, weights)
    run, step = session(graphs.loss, weights), DIFFERENCE_STEP * loss / norm
    losses = []
    for sign in (1, -1):
        moved = {n: (v + sign * step / norm * gradients[n]).astype(np.float32) for n, v in before.items()}
        losses.append(float(run.run(["loss"], {**moved, **feeds})[0]))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(norm, rel=DIFFERENCE_TOLERANCE)
    if name not in GROUPED:
        whole = onnx.load_model_from_string(join_weights(graphs.loss, weights, graphs.layout))
        adjoint = onnx_ad.reverse(whole, inputs=list(before), outputs=["loss"], layout="onnx").SerializeToString()
        seeded = {**before, **feeds, "adj_loss": np.ones(1, np.float32)}
        found = session(adjoint, weights).run([f"adj_{each}" for each in before], seeded)
        apart = sum(((other[..., 0] - gradients[n]) ** 2).sum() for n, other in zip(before, found, strict=True))
        assert np.sqrt(apart) <= TOLERANCE * norm
