"""`holdfast bench` as a person runs it, alone and beside a server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.fakes import served_models as models
from tests.fakes.serving import pool_of, serving

from holdfast.inference.session import ModelSource

TIMEOUT_S = 120


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "holdfast", "bench", "--seconds", "0.4", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.perceptron())
    return path


def test_json_holds_measured_figures_and_null_where_nothing_was(model: Path) -> None:
    done = bench(str(model), "--json")

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["schema"] == "holdfast.bench/1"
    assert result["model"]["sha256"] == ModelSource.from_file(model).digest
    assert result["model"]["sha256"] != hashlib.sha256(b"").hexdigest()
    raw = result["in_process"]["latency_ns"]["raw"]
    assert raw["n"] >= 1
    assert all(value is None or isinstance(value, int) for value in raw.values())
    assert set(result["cold"]["median"]) == {"import_ns", "load_ns", "first_run_ns", "second_run_ns", "process_ns"}
    assert result["noise"]["verdict"] in ("quiet", "noisy", "unusable", "unknown")
    assert result["against"] is None
    assert result["energy"]["uj_per_call"] is None


def test_against_a_server_compares_the_same_answers(model: Path) -> None:
    with serving(pool_of({"m": models.perceptron()})) as address:
        done = bench(str(model), "--json", "--against", str(address))

    against = json.loads(done.stdout)["against"]
    assert against["answers_equal"] is True
    assert 0 < against["ratio_p50"]["min"] <= against["ratio_p50"]["median"] <= against["ratio_p50"]["max"]
    assert against["latency_ns"]["raw"]["n"] >= 10


def test_against_another_model_gives_no_ratio(model: Path) -> None:
    with serving(pool_of({"m": models.perceptron(seed=1)})) as address:
        done = bench(str(model), "--against", str(address))

    assert done.returncode == 0, done.stderr
    assert "is it the same model?" in done.stdout
    assert "x of in process" not in done.stdout


def test_against_an_unknown_name_says_so(model: Path) -> None:
    with serving(pool_of({"other": models.perceptron()})) as address:
        done = bench(str(model), "--json", "--against", str(address))

    assert done.returncode == 1
    message = json.loads(done.stdout)["error"]["message"]
    assert "NOT_FOUND Request for unknown model: 'm' is not found" in message


def test_bad_model_is_refused_in_its_trial(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"")

    done = bench(str(path))

    assert done.returncode == 1
    assert "HF-MODEL-004" in done.stderr


def test_more_threads_say_why_there_is_no_clean_figure(model: Path) -> None:
    result = json.loads(bench(str(model), "--json", "--threads", "2").stdout)

    assert result["in_process"]["latency_ns"]["clean"] is None
    assert "--threads 1" in result["in_process"]["latency_ns"]["clean_reason"]
