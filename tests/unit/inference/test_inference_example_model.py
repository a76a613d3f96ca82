"""The example recognises its own digits, and of real ones as many as its text says."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from holdfast.inference.example_model import digit_templates, digits_model
from holdfast.inference.session import ModelSource, load_session


def test_example_knows_its_templates_also_with_noise() -> None:
    session = load_session(ModelSource(digits_model()))
    noisy = digit_templates() + np.random.default_rng(0).normal(0, 2, (10, 64)).astype(np.float32)

    assert session.run({"pixels": digit_templates()})["digit"].tolist() == list(range(10))
    assert session.run({"pixels": noisy})["digit"].tolist() == list(range(10))


def test_example_knows_two_in_three_of_real_digits() -> None:
    session = load_session(ModelSource(digits_model()))
    pixels, labels = load_digits(return_X_y=True)

    got = session.run({"pixels": pixels.astype(np.float32)})["digit"]

    assert round(float((got == labels).mean()), 2) == 0.68


def test_example_gives_probabilities() -> None:
    session = load_session(ModelSource(digits_model()))

    probabilities = session.run({"pixels": digit_templates()})["probabilities"]

    assert np.allclose(probabilities.sum(axis=1), 1.0, atol=1e-6)
