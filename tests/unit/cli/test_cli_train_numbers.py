"""From `holdfast bundle pack` to `holdfast train` with labels that are numbers, and with every kind of option."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.models import he_mlp
from tests.fakes.trainable_bundles import numbers

from holdfast.bundle.verify import read_bundle
from holdfast.cli.main import main
from holdfast.trust.keys import ECDSA_P256
from holdfast.trust.keystore import KeyStore


@pytest.fixture
def place(tmp_path: Path) -> Path:
    KeyStore(tmp_path / "author").create("author", ECDSA_P256)
    (tmp_path / "numbers.onnx").write_bytes(he_mlp([4, 8, 2]))
    arrays = numbers(200)
    np.savez(tmp_path / "reference.npz", input=arrays["x"], y=arrays["y"])
    np.savez(tmp_path / "data.npz", **arrays)
    return tmp_path


def pack(place: Path, *more: str) -> int:
    about = ("--version", "1", "--owner", "o@example.org", "--purpose", "tests", "--max-update-norm", "50")
    files = ("--key", str(place / "author"), "--samples", str(place / "reference.npz"), "-o", str(place / "b"))
    return main(["bundle", "pack", str(place / "numbers.onnx"), *about, *files, *more])


def train(place: Path, *more: str) -> int:
    return main(["train", str(place / "b"), "--data", str(place / "data.npz"), *more])


def test_a_regression_with_adam_is_packed_and_learns(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(place, "--loss", "mse", "--optimizer", "adam:beta1=0.8") == 0
    capsys.readouterr()

    assert train(place, "--lr", "0.02", "--epochs", "20", "--json") == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["loss_after"] < 0.1 * facts["loss_before"]
    assert (facts["accuracy_before"], facts["accuracy_after"], facts["class_counts"]) == (None, None, [])
    training = read_bundle((place / "b").read_bytes()).manifest.training
    assert training is not None
    assert (training.loss.name, training.optimizer.number("beta1"), training.label_shape) == ("mse", 0.8, (2,))


def test_a_regression_shows_no_accuracy_to_people(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(place, "--loss", "huber:delta=0.5", "--optimizer", "momentum") == 0

    assert train(place, "--lr", "0.02") == 0

    shown = capsys.readouterr().out
    assert "loss" in shown
    assert "accuracy" not in shown


def test_yes_or_no_labels_are_judged_one_by_one(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = numbers(200)["x"]
    np.savez(place / "data.npz", x=x, y=(x[:, :2] > 0).astype(np.float32))
    assert pack(place, "--loss", "binary_cross_entropy", "--optimizer", "adamw") == 0
    capsys.readouterr()

    assert train(place, "--lr", "0.02", "--epochs", "20", "--json") == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["accuracy_before"] < 0.9 < facts["accuracy_after"] <= 1
    assert (facts["judged_samples"], facts["judged_labels"]) == (40, 80)


def test_a_csv_file_with_several_numbers_per_label(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(place, "--loss", "l1", "--optimizer", "nesterov") == 0
    folder = place / "samples"
    folder.mkdir()
    arrays = numbers(50)
    rows = [",".join(map(repr, row)) for row in np.hstack([arrays["x"], arrays["y"]]).astype(float).tolist()]
    (folder / "a.csv").write_text("\n".join(["a,b,c,d,sum,twice", *rows]))
    (folder / "contract.toml").write_text('[labels]\ncolumns = ["sum", "twice"]\n')
    capsys.readouterr()

    assert main(["train", str(place / "b"), "--data", str(folder), "--json"]) == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["samples"] == 40
    assert facts["loss_after"] < facts["loss_before"]


def test_a_step_over_several_batches(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(place, "--loss", "mse", "--batch", "4", "--accumulate", "5", "--clip-norm", "0") == 0
    capsys.readouterr()

    assert train(place, "--lr", "0.02", "--epochs", "3", "--json", "--clip-norm", "2.5") == 0

    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["steps"]) == (160, 24)
    assert facts["loss_after"] < facts["loss_before"]
    assert train(place, "--proximal-mu", "0.1") == 1
    assert "no input 'proximal_mu'; pack the model again" in capsys.readouterr().err


def test_ignored_labels_count_for_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pack(place, "--loss", "cross_entropy:ignore_index=9,class_weights=1/2", "--labels", "a,b") == 0
    x = numbers(200)["x"]
    labels = (x[:, 0] > 0).astype(np.int64)
    labels[:150] = 9
    np.savez(place / "data.npz", x=x, y=labels)
    capsys.readouterr()

    assert train(place, "--json", "--hold-out", "0") == 0

    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], sum(facts["class_counts"]), facts["judged_labels"]) == (200, 50, 50)
    np.savez(place / "data.npz", x=x, y=np.full(200, 9))
    assert train(place) == 1
    assert "every sample bears the label that is ignored" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("defect", "y", "message"),
    [
        ("integers", np.zeros((200, 2), np.int64), "labels 'y' is int64, expected float32"),
        ("one_number", np.zeros((200, 1), np.float32), "shape [200, 1], expected [200, 2]"),
        ("nan", np.full((200, 2), np.nan, np.float32), "labels 'y' holds NaN or infinity in row 0"),
        ("not_a_probability", np.full((200, 2), 1.5, np.float32), "labels 'y' is outside [0.0, 1.0] in row 0"),
    ],
)
def test_wrong_labels_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], defect: str, y: np.ndarray, message: str
) -> None:
    assert pack(place, "--loss", "binary_cross_entropy") == 0
    np.savez(place / "data.npz", x=numbers(200)["x"], y=y)

    assert train(place) == 1

    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--loss", "hinge"), "unknown loss 'hinge'"),
        (("--loss", "huber:delta=0"), "huber:delta must be from"),
        (("--optimizer", "adam:beta3=1"), "unknown setting 'beta3'"),
        (("--accumulate", "0"), "--accumulate must be 1 or more"),
        (("--accumulate", "2", "--batch-norm", "local"), "freeze them"),
        (("--clip-norm", "-1"), "--clip-norm must be 0 or more"),
        (("--proximal-mu", "nan"), "--proximal-mu must be 0 or more"),
        (("--loss", "cross_entropy:class_weights=1/2/3"), "3 class_weights for 2 classes"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert pack(place, *more) in (1, 2)

    assert message in capsys.readouterr().err
    assert not (place / "b").exists()
