"""The examples run as their READMEs say, each in a process of its own, and say no when they should."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TIMEOUT_S = 60  # a bound for a busy machine; each takes a few seconds at most


def run(name: str, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Run one example; `code`: run this after importing its module as `example`, instead."""
    script = EXAMPLES / name / "run.py"
    command = [sys.executable, str(script), *arguments]
    if code:
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path.insert(0, {str(script.parent)!r})\nimport run as example\n{code}",
        ]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)


@pytest.mark.parametrize("name", sorted(path.parent.name for path in EXAMPLES.glob("*/run.py")))
def test_examples_every_one_ends_well(name: str) -> None:
    done = run(name)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_examples_every_one_is_described() -> None:
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")

    for folder in (path.parent for path in EXAMPLES.glob("*/run.py")):
        assert f"{folder.name}/README.md" in index
        assert (folder / "README.md").read_text(encoding="utf-8").startswith("# ")


def test_example_01_gets_the_same_bits_over_both_transports() -> None:
    done = run("01_serve_a_model")

    assert "HTTP: probabilities, digit; same bits as ONNX Runtime" in done.stdout
    assert "gRPC: probabilities, digit; same bits as ONNX Runtime" in done.stdout
    assert "digits recognised: [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]" in done.stdout


def test_example_01_names_a_file_that_is_no_model(tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")

    done = run("01_serve_a_model", str(bad))

    assert done.returncode != 0
    assert "HF-MODEL" in done.stderr or "not an ONNX file" in done.stderr


def test_example_02_finds_each_kind_of_damage() -> None:
    done = run("02_verify_a_report_chain")

    assert "8 reports: signatures, numbers and links hold" in done.stdout
    assert "NOT FOUND" not in done.stdout
    assert "report 3 dropped: HF-TRUST-003" in done.stdout
    assert "one flipped bit in report 5: HF-TRUST-001" in done.stdout


def test_example_02_says_no_when_damage_is_not_found() -> None:
    code = "example.check_chain = lambda chain, key: None\nsys.exit(example.main())"

    done = run("02_verify_a_report_chain", code=code)

    assert done.returncode == 1
    assert done.stdout.count("NOT FOUND") == 3


def test_example_02_uses_the_shared_rooms_only() -> None:
    code = "print(sorted({n.split('.')[1] for n in sys.modules if n.startswith('holdfast.')}))"

    done = run("02_verify_a_report_chain", code=code)

    assert done.stdout.strip() == "['errors', 'trust', 'wire']"
