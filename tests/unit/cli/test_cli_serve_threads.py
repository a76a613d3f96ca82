"""`holdfast serve` starts no threads that serving never uses."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest

from holdfast.cli import serve

BLAS = "OPENBLAS_NUM_THREADS"


@pytest.mark.parametrize(("said", "expected"), [(None, "1"), ("4", "4")])
def test_numpys_blas_gets_one_thread_unless_somebody_says_otherwise(
    said: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BLAS, said or "")
    if said is None:
        monkeypatch.delenv(BLAS)
    monkeypatch.setattr(serve, "_serve_file", lambda _arguments: 0)
    parser = argparse.ArgumentParser()
    serve.SERVE.add_arguments(parser)

    serve.SERVE.run(parser.parse_args([str(tmp_path / "m.onnx")]))

    assert os.environ[BLAS] == expected
