"""Every gradient rule beside torch, live: `.venv-corpus/bin/python -m tests.corpus.live_rules` (see install.sh).

The golden vectors were made once; here each case of the rules gets new numbers, torch differentiates it in float64, and
the product's graphs run at both optimisation levels. Prints one JSON object: the relative error of each case.
"""

from __future__ import annotations

import dataclasses
import json
import sys

import numpy as np
from tests.fakes.step_runs import session, step_gradients, trainable_of
from tests.vectors.autodiff.cases import OPERATOR_CASES, Case
from tests.vectors.autodiff.make_vectors import gradients

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights

DRAWS, CERTAIN = 50, 0.5  # a mean loss below it leaves too few digits to a float32 gradient


def main() -> int:
    print(json.dumps({case.name: _error(case) for case in OPERATOR_CASES}))
    return 0


def _error(case: Case) -> float:
    """The largest distance from torch over loss, parameters and input, relative to the largest element of each.

    A gradient that all but cancels out (a bias in front of a softmax) has few digits: it counts as at least a
    hundredth of the largest of the case.
    """
    case, expected = _drawn(case)
    model, x, labels = case.model(), case.input_values(), np.array(case.labels)
    graphs, weights = build_graphs(model, batch=len(labels), tied=case.tied), split_weights(model).weights
    feeds = {"x": x, "labels": labels}
    floor = max(float(np.abs(value).max()) for value in expected.values()) / 100
    worst = 0.0
    for optimize in (True, False):
        found, _, loss = step_gradients(graphs, weights, feeds, optimize=optimize)
        assert graphs.input_gradient is not None
        run = session(graphs.input_gradient, weights, optimize=optimize)
        (found["x"],) = run.run(None, {**trainable_of(graphs, weights), **feeds})
        found["loss"] = np.array(loss)
        for name, value in found.items():
            largest = max(float(np.abs(expected[name]).max()), floor)
            worst = max(worst, float(np.abs(value - expected[name]).max()) / largest)
    return worst


def _drawn(case: Case) -> tuple[Case, dict[str, np.ndarray]]:
    """The case with new numbers, which it draws from its name, and torch's answer.

    Where one class is as good as certain, what is left of the gradient in float32 is rounding: such numbers are drawn
    again.
    """
    for draw in range(DRAWS):
        again = dataclasses.replace(case, name=f"live/{draw}/{case.name}")
        expected = gradients(again.model(), again.input_values(), np.array(again.labels))
        if expected["loss"] > CERTAIN:
            return again, expected
    raise AssertionError(f"{case.name}: {DRAWS} draws are all certain of their class")


if __name__ == "__main__":
    sys.exit(main())
