"""What an author and an approver read of a manifest: also how devices will learn, and what was checked of it."""

from __future__ import annotations

import dataclasses

from tests.fakes import bundles

from holdfast.bundle.manifest import GradientCheck
from holdfast.bundle.training import Training, recipe_named
from holdfast.cli.manifest_text import manifest_lines

PLAIN = bundles.manifest_of(bundles.bundle_files())
LOSS = recipe_named("loss", "softmax_cross_entropy:class_weights=1/2/4,label_smoothing=0.1")
ADAM = recipe_named("optimizer", "adam:beta1=0.8")
CLASSES = Training(LOSS, ADAM, 10, 3, (), 4, "averaged", True, 0.0, 2.5, lowerings={"Conv 4x3": "taps"})
NUMBERS = Training(recipe_named("loss", "mse"), recipe_named("optimizer", "sgd"), 8, 0, (2, 3))
CHECK = GradientCheck(2.5e-7, 1.5e-7, 1.25, 4, 1e-4, 7, 1e-4)


def shown(training: Training | None, check: GradientCheck | None = None) -> list[str]:
    manifest = dataclasses.replace(PLAIN, training=training, gradient_check=check)
    return list(manifest_lines(manifest, "d" * 64))


def test_a_training_contract_is_shown_as_it_is_typed_with_all_that_a_step_does() -> None:
    lines = shown(CLASSES, CHECK)

    assert [line for line in lines if line[:8].strip() in {"training", "step", "also", "tuned", "checked"}] == [
        "training loss softmax_cross_entropy:class_weights=1/2/4,label_smoothing=0.1,ignore_index=-1, "
        "optimizer adam:beta1=0.8,beta2=0.999,epsilon=1e-08",
        "step     4 batches of 10 samples, added up; labels: 3 classes; graph built",
        "also     normalisation statistics averaged, dropout, pull (FedProx mu) if a round says so, gradient norm 2.5",
        "tuned    Conv 4x3: taps",
        "checked  gradient of norm 1.25: off by 2.5e-07 along 4 directions, by 1.5e-07 from ONNX's evaluator; "
        "0.0001 allowed",
    ]


def test_labels_that_are_numbers_are_shown_with_their_shape() -> None:
    lines = shown(NUMBERS)

    assert "training loss mse, optimizer sgd" in lines
    assert "step     8 samples; labels: 2x3 numbers; graph built" in lines
    assert not [line for line in lines if line.startswith(("also", "tuned", "checked"))]


def test_a_model_that_is_only_served_says_so() -> None:
    assert "training none: packed to be served" in shown(None)
