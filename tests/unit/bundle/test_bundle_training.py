"""The training contract: every loss and optimizer that graphs are built with, spelled out; nothing else gets in."""

from __future__ import annotations

import dataclasses
import inspect
import json

import pytest
from tests.fakes import bundles

from holdfast.autodiff.registry import LOSSES as BUILT_LOSSES
from holdfast.autodiff.registry import OPTIMIZERS as BUILT_OPTIMIZERS
from holdfast.bundle.manifest import Manifest, decode_manifest, encode_manifest
from holdfast.bundle.training import LOSSES, OPTIMIZERS, Recipe, Training, recipe_named
from holdfast.errors import BundleError

ADAM = recipe_named("optimizer", "adam:beta1=0.8")
HUBER = recipe_named("loss", "huber:delta=0.5")
PLAIN = bundles.manifest_of(bundles.bundle_files())
FULL = Training(HUBER, ADAM, 4, 0, (2, 3), 3, "averaged", True, 0.1, 0.0, ("weight",), "brought", {"Conv 4x3": "taps"})


def with_training(training: Training) -> Manifest:
    return dataclasses.replace(PLAIN, training=training)


@pytest.mark.parametrize(("table", "built"), [(LOSSES, BUILT_LOSSES), (OPTIMIZERS, BUILT_OPTIMIZERS)])
def test_training_tables_are_what_the_builder_takes(table: dict, built: dict) -> None:
    expected = {
        name: {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
        for name, make in built.items()
    }

    assert {
        name: {key: setting.default for key, setting in settings.items()} for name, settings in table.items()
    } == expected


@pytest.mark.parametrize("loss", sorted(LOSSES))
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_training_of_every_kind_is_signed_with_all_its_settings(loss: str, optimizer: str) -> None:
    classes = 3 if loss == "softmax_cross_entropy" else 0
    training = Training(recipe_named("loss", loss), recipe_named("optimizer", optimizer), 10, classes)

    data = encode_manifest(with_training(training))

    assert decode_manifest(data).training == training
    written = json.loads(data)["training"]
    assert set(written["optimizer"]["settings"]) == set(OPTIMIZERS[optimizer])


def test_training_survives_the_manifest_whole() -> None:
    assert decode_manifest(encode_manifest(with_training(FULL))).training == FULL


def test_recipe_reads_settings_and_keeps_the_other_defaults() -> None:
    recipe = recipe_named("loss", "softmax_cross_entropy:class_weights=1/2/4,ignore_index=7")

    assert recipe.numbers("class_weights") == (1.0, 2.0, 4.0)
    assert (recipe.number("ignore_index"), recipe.number("label_smoothing")) == (7, 0.0)
    assert Recipe("adam", {"beta1": 0.8, "beta2": 0.999, "epsilon": 1e-8}) == ADAM


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("loss", "hinge", "unknown loss 'hinge'"),
        ("optimizer", "mse", "unknown optimizer 'mse'"),
        ("loss", "mse:delta=1", "unknown setting 'delta'"),
        ("loss", "huber:delta=0", "huber:delta must be from"),
        ("loss", "huber:delta=wide", "huber:delta must be a number"),
        ("loss", "huber:delta=nan", "decimal number"),
        ("optimizer", "adam:beta1=1", "adam:beta1 must be from"),
        ("optimizer", "sgd:weight_decay=-1", "weight_decay must be from 0"),
        ("loss", "softmax_cross_entropy:label_smoothing=1", "label_smoothing"),
        ("loss", "softmax_cross_entropy:class_weights=1/-1", "class_weights"),
    ],
)
def test_recipe_with_a_defect_is_refused(kind: str, text: str, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        recipe_named(kind, text)


@pytest.mark.parametrize(
    ("defect", "change", "message"),
    [
        ("unknown_loss", {"loss": {"name": "hinge", "settings": {}}}, "loss.name must be one of"),
        ("loss_as_text", {"loss": "mse"}, "loss is not an object"),
        ("setting_missing", {"loss": {"name": "huber", "settings": {}}}, "lacks the key 'delta'"),
        ("setting_of_another", {"loss": {"name": "mse", "settings": {"delta": 1.0}}}, "unknown key 'delta'"),
        ("setting_out_of_range", {"loss": {"name": "huber", "settings": {"delta": -1.0}}}, "delta must be from"),
        ("setting_is_text", {"loss": {"name": "huber", "settings": {"delta": "1"}}}, "decimal number"),
        ("batch_zero", {"batch": 0}, "batch must be"),
        ("batch_is_true", {"batch": True}, "batch must be"),
        ("classes_of_numbers", {"classes": 3}, "classes is 3"),
        ("label_of_nothing", {"label_shape": [0]}, "label_shape"),
        ("accumulate_zero", {"accumulate": 0}, "accumulate must be"),
        ("unknown_statistics", {"batch_norm": "shared"}, "batch_norm must be one of"),
        ("negative_pull", {"proximal_mu": -0.1}, "proximal_mu must be"),
        ("bound_is_integer", {"gradient_clip": 1}, "gradient_clip must be"),
        ("statistics_of_nothing", {"statistics": ["mean"]}, "names 'mean'"),
        ("frozen_statistics", {"batch_norm": "frozen"}, "names 'weight'"),
        ("local_statistics_that_learn", {"batch_norm": "local"}, "names 'weight'"),
        ("lowerings_as_list", {"lowerings": []}, "lowerings must be an object"),
        ("lowering_is_number", {"lowerings": {"Conv": 1}}, "lowerings must be a name"),
        ("lowering_that_hides_text", {"lowerings": {"Conv\x1b[2K": "taps"}}, "printable"),
        ("unknown_key", {"schedule": "cosine"}, "unknown key 'schedule'"),
    ],
)
def test_training_with_a_defect_is_refused(defect: str, change: dict[str, object], message: str) -> None:
    document = json.loads(encode_manifest(with_training(FULL)))
    document["training"] |= change
    data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    with pytest.raises(BundleError, match=message):
        decode_manifest(data)
