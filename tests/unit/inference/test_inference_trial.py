"""The trial refuses what hangs, eats memory or lies, and says why."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto
from tests.fakes import served_models as models

from holdfast.errors import ModelError, TrialError
from holdfast.inference.session import ModelSource
from holdfast.inference.tensors import TensorSpec
from holdfast.inference.trial import CRASH, MEMORY, NOT_A_MODEL, TIMEOUT, WRONG_OUTPUTS, Golden, run_trial

ONE = np.ones((1, 4), dtype=np.float32)


def test_trial_reports_what_the_model_declares() -> None:
    source = ModelSource(models.identity())

    report = run_trial(source)

    assert report.inputs == (TensorSpec("x", "float32", (None, 4)),)
    assert report.outputs == (TensorSpec("y", "float32", (None, 4)),)
    assert report.probe == "ok"
    assert not report.golden_checked
    assert report.load_ns > 0


def test_trial_reads_a_file_with_external_weights(tmp_path: Path) -> None:
    model, weights = models.with_external_weight()
    (tmp_path / "m.onnx").write_bytes(model)
    (tmp_path / "weights.bin").write_bytes(weights)

    report = run_trial(tmp_path / "m.onnx", Golden({"x": ONE}, {"y": np.array([[1, 2, 3, 4]], dtype=np.float32)}))

    assert report.golden_checked


def test_trial_accepts_golden_strings() -> None:
    words = np.array(["weiß".encode(), b""], dtype=object)

    report = run_trial(ModelSource(models.identity(TensorProto.STRING, ("n",))), Golden({"x": words}, {"y": words}))

    assert report.golden_checked


def test_trial_refuses_wrong_golden_outputs() -> None:
    with pytest.raises(TrialError, match="golden output 'y' differs") as refused:
        run_trial(ModelSource(models.identity()), Golden({"x": ONE}, {"y": ONE * 1.01}))

    assert refused.value.reason == WRONG_OUTPUTS


def test_trial_refuses_golden_inputs_the_model_does_not_have() -> None:
    with pytest.raises(TrialError, match="expected x; got z") as refused:
        run_trial(ModelSource(models.identity()), Golden({"z": ONE}, {"y": ONE}))

    assert refused.value.reason == WRONG_OUTPUTS


@pytest.mark.parametrize("defect", ["empty", "garbage", "truncated", "one_byte_short", "text"])
def test_trial_refuses_a_file_that_is_no_model(defect: str) -> None:
    whole = models.perceptron()
    data = {
        "empty": b"",
        "garbage": bytes(range(256)) * 8,
        "truncated": whole[: len(whole) // 2],
        "one_byte_short": whole[:-1],
        "text": b"<html>404 not found</html>",
    }[defect]

    with pytest.raises(TrialError) as refused:
        run_trial(ModelSource(data))

    assert refused.value.reason == NOT_A_MODEL


@pytest.mark.parametrize("model", [models.hangs_while_loading, models.hangs_at_first_run])
def test_trial_ends_a_model_that_hangs(model: object) -> None:
    assert callable(model)

    with pytest.raises(TrialError, match="within 4 s") as refused:
        run_trial(ModelSource(model()), timeout_s=4.0)

    assert refused.value.reason == TIMEOUT


def test_trial_waits_as_well_where_the_kernel_has_no_handles_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_pid: int) -> int:
        raise OSError(errno.ENOSYS, "not implemented")

    monkeypatch.setattr("os.pidfd_open", missing)

    assert run_trial(ModelSource(models.identity())).probe == "ok"
    with pytest.raises(TrialError, match=r"within 0\.1 s"):
        run_trial(ModelSource(models.hangs_while_loading()), timeout_s=0.1)


def test_trial_ends_a_model_that_eats_memory() -> None:
    with pytest.raises(TrialError, match="more than the 268435456 bytes") as refused:
        run_trial(ModelSource(models.eats_memory()), memory_bytes=256 * 1024**2)

    assert refused.value.reason == MEMORY


def test_trial_refuses_a_type_that_cannot_be_served() -> None:
    with pytest.raises(TrialError, match=r"tensor\(complex64\)") as refused:
        run_trial(ModelSource(models.identity(TensorProto.COMPLEX64)))

    assert refused.value.reason == NOT_A_MODEL


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/hostname", "a/../../b"])
def test_source_refuses_external_data_outside_the_models_folder(tmp_path: Path, location: str) -> None:
    model, _ = models.with_external_weight(location)
    (tmp_path / "m.onnx").write_bytes(model)

    with pytest.raises(ModelError, match="outside its own folder"):
        ModelSource.from_file(tmp_path / "m.onnx")


def test_source_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"absent\.onnx cannot be read"):
        ModelSource.from_file(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("kill -SEGV $$", r"crashed while it was tried \(SIGSEGV\)"),
        ("exit 3", r"crashed while it was tried \(exit code 3\)"),
        ("exit 0", "no readable answer"),
        ("echo not json", "no readable answer"),
        ("head -c 9000000 /dev/zero", "no readable answer"),
        ("echo '[]'", "no readable answer"),
        ('echo \'{"ok": true, "inputs": 5}\'', "no readable answer"),
    ],
    ids=["segfault", "exit_3", "says_nothing", "not_json", "says_too_much", "a_list", "wrong_fields"],
)
def test_whatever_the_child_does_is_a_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, text: str
) -> None:
    child = tmp_path / "child"
    child.write_text(f"#!/bin/sh\n{script}\n")
    child.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(child))

    with pytest.raises(TrialError, match=text) as refused:
        run_trial(ModelSource(models.identity()))

    assert refused.value.reason == CRASH
