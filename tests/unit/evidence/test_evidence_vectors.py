"""Evidence that was written once must stay readable, to the same figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from holdfast.cli.main import main
from holdfast.evidence.layout import read_evidence, write_evidence

VECTORS = Path(__file__).parents[2] / "vectors" / "evidence"


def test_version_1_is_authenticated_by_its_roots(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["evidence", "verify", str(VECTORS / "v1.evidence"), "--root", str(VECTORS / "v1-roots")]

    assert main(arguments) == 0

    shown = capsys.readouterr().out
    assert "consistent and authenticated: 35 entries of plant7.example/ledger" in shown
    assert "digits@2 accuracy 0.925 of 200 samples" in shown
    assert "worth it: yes" in shown


def test_version_1_is_written_with_the_same_bytes() -> None:
    data = (VECTORS / "v1.evidence").read_bytes()

    assert write_evidence(read_evidence(data)) == data
