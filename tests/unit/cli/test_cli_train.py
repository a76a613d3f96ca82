"""`holdfast train`: figures that can be checked, weights that can be served, and refusals that say what is wrong."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.fakes.trainable_bundles import packed, samples, served_only

from holdfast.bundle.files import EVALUATE_GRAPH, GOLDEN_FILE, KIND, MODEL_FILE, TRAIN_GRAPH, WEIGHTS_FILE
from holdfast.bundle.golden import read_golden
from holdfast.bundle.verify import read_bundle
from holdfast.cli.curve import averaged, svg_curve, text_curve
from holdfast.cli.main import main
from holdfast.inference.session import ModelSource, load_session
from holdfast.learn.trainable import open_trainable
from holdfast.wire.container import read_container, write_container


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "small.bundle").write_bytes(packed())
    np.savez(tmp_path / "data.npz", **samples(200))
    return tmp_path


def train(place: Path, *more: str) -> int:
    return main(["train", str(place / "small.bundle"), "--data", str(place / "data.npz"), *more])


def test_train_reports_what_it_learned(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = train(place, "--json", "--epochs", "10", "--out", str(place / "w.npz"), "--curve", str(place / "c.svg"))

    facts = json.loads(capsys.readouterr().out)
    assert code == 0
    assert facts["steps"] == 160
    assert (facts["samples"], facts["judged_on"], facts["judged_samples"]) == (160, "held out", 40)
    assert sum(facts["class_counts"]) == 160
    assert facts["loss_after"] < facts["loss_before"]
    assert facts["accuracy_after"] > facts["accuracy_before"]
    assert facts["accuracy_after"] >= 0.85
    assert facts["seconds_per_step"] > 0
    assert facts["peak_memory_bytes"] > 10_000_000
    assert facts["weights"] == str(place / "w.npz")
    assert (place / "c.svg").read_text().startswith("<svg")


def test_trained_weights_are_served_through_external_initializers(place: Path, capsys: object) -> None:
    assert train(place, "--out", str(place / "w.npz")) == 0
    opened = open_trainable(packed())
    with np.load(place / "w.npz") as archive:
        trained = opened.layout.pack({name: archive[name] for name in archive.files})
    files = opened.bundle.files

    old = load_session(ModelSource(files[MODEL_FILE], {WEIGHTS_FILE: files[WEIGHTS_FILE]}))
    new = load_session(ModelSource(files[MODEL_FILE], {WEIGHTS_FILE: trained.tobytes()}))

    golden = read_golden(files[GOLDEN_FILE])
    x = golden.inputs["input"]
    tensors = opened.layout.unpack(trained)
    hidden = np.maximum(x @ tensors["layer0.weight"].T + tensors["layer0.bias"], 0)
    expected = hidden @ tensors["layer1.weight"].T + tensors["layer1.bias"]
    np.testing.assert_allclose(new.run({"input": x})["logits"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(old.run({"input": x})["logits"], golden.outputs["logits"])
    assert not np.allclose(expected, golden.outputs["logits"], atol=1e-2)


def test_train_for_people_draws_a_curve_and_says_where_it_measured(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(place, "--hold-out", "0", "--epochs", "2") == 0

    shown = capsys.readouterr()
    assert "measured on 200 training samples" in shown.out
    assert "█" in shown.out
    assert "epoch 2/2" in shown.err


def test_train_goes_on_from_a_checkpoint_and_removes_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "checkpoint"

    assert train(place, "--checkpoint", str(path), "--json") == 0

    assert json.loads(capsys.readouterr().out)["resumed_epochs"] == 0
    assert not path.exists()


def test_train_is_the_same_every_time(place: Path, capsys: object) -> None:
    for name in ("a.npz", "b.npz"):
        assert train(place, "--out", str(place / name)) == 0

    assert (place / "a.npz").read_bytes() == (place / "b.npz").read_bytes()


@pytest.mark.parametrize(
    ("defect", "arrays", "code", "message"),
    [
        ("label_out_of_range", {"y": np.full(200, 3)}, "HF-FORMAT-004", "label of row 0 is out of range"),
        ("nan", {"x": np.full((200, 4), np.nan, np.float32)}, "HF-FORMAT-004", "NaN or infinity in row 0"),
        ("empty", {"x": np.ones((0, 4), np.float32), "y": np.ones(0, int)}, "HF-FORMAT-004", "no samples"),
        ("dtype", {"x": np.ones((200, 4))}, "HF-FORMAT-004", "is float64, expected float32"),
        ("shape", {"x": np.ones((200, 5), np.float32)}, "HF-FORMAT-004", "shape"),
    ],
)
def test_train_refuses_samples(
    place: Path,
    capsys: pytest.CaptureFixture[str],
    defect: str,
    arrays: dict[str, np.ndarray],
    code: str,
    message: str,
) -> None:
    np.savez(place / "data.npz", **{**samples(200), **arrays})

    assert train(place, "--json") == 1

    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == code
    assert message in error["message"]
    assert "data.npz" in error["message"]


def test_train_takes_one_sample(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(place / "data.npz", **samples(1))

    assert train(place, "--json") == 0

    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["judged_on"], facts["steps"]) == (1, "training", 5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lr", "0"), "learning rate"),
        (("--lr", "1e30"), "lower the learning rate"),
        (("--batch", "11"), "built for batch 10"),
        (("--epochs", "0"), "epochs"),
        (("--hold-out", "1"), "hold-out"),
        (("--threads", "0"), "threads"),
        (("--nice", "20"), "--nice"),
    ],
)
def test_train_refuses_settings(
    place: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    assert train(place, *more) in (1, 2)

    assert message in capsys.readouterr().err


def test_train_refuses_a_bundle_that_is_only_served(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "small.bundle").write_bytes(served_only())

    assert train(place) == 1

    assert "packed to be served" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--out", "--curve", "--checkpoint"])
def test_train_refuses_a_place_it_cannot_write_to_before_it_learns(
    place: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    assert train(place, flag, str(place / "none" / "file")) == 2

    shown = capsys.readouterr().err
    assert "is no folder that can be written to" in shown
    assert "epoch" not in shown


@pytest.mark.parametrize("damage", ["another_graph", "one_byte", "cut"])
def test_train_refuses_a_bundle_that_was_changed(place: Path, capsys: pytest.CaptureFixture[str], damage: str) -> None:
    data = packed()
    files = read_container(data, KIND)
    files[TRAIN_GRAPH] = files[EVALUATE_GRAPH]
    at = data.index(b"learning_rate")
    changed = {
        "another_graph": write_container(KIND, files),
        "one_byte": data[:at] + b"L" + data[at + 1 :],
        "cut": data[:-1],
    }[damage]
    (place / "small.bundle").write_bytes(changed)

    assert train(place) == 1

    expected = {"another_graph": "graphs/train.onnx", "one_byte": "was changed", "cut": "container"}[damage]
    assert expected in capsys.readouterr().err


def test_train_draws_a_bar_on_a_terminal(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)

    assert train(place, "--epochs", "2") == 0

    assert "\r[##############################] epoch 2/2 step 32/32 loss 0." in capsys.readouterr().err


def test_a_training_whose_weights_could_not_be_written_goes_on_from_its_checkpoint(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").rpartition("/")[2].startswith((".w.npz", "w.npz")):
            raise OSError(28, "No space left on device")

    files = ("--checkpoint", str(place / "c"), "--out", str(place / "w.npz"))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        assert train(place, *files) == 2
    assert not (place / "w.npz").exists()
    capsys.readouterr()

    assert train(place, *files, "--json") == 0

    assert json.loads(capsys.readouterr().out)["resumed_epochs"] == 5
    assert (place / "w.npz").exists()


def test_train_says_that_the_disk_is_full(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    assert train(place, "--out", str(place / "w.npz")) == 2

    assert "No space left" in capsys.readouterr().err
    assert not (place / "w.npz").exists()


def test_bundle_is_not_changed_by_training(place: Path, capsys: object) -> None:
    train(place)

    assert read_bundle((place / "small.bundle").read_bytes()).digest == read_bundle(packed()).digest


@pytest.mark.parametrize("losses", [[], [1.0], [0.0, 0.0], [3.0, 2.0, 1.0], [float(i) for i in range(1000)]])
def test_curves_of_any_length_can_be_drawn(losses: list[float]) -> None:
    assert svg_curve(losses, "<a & b>").count("&lt;a &amp; b&gt;") == 1
    assert all(len(line) <= 100 for line in text_curve(losses).splitlines())


def test_averages_keep_the_mean_and_the_order() -> None:
    values = [float(i) for i in range(100)]

    assert averaged(values, 10) == [4.5 + 10 * i for i in range(10)]
    assert averaged(values, 1000) == values
