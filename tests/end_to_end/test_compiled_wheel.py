"""A wheel that was asked to be compiled: it holds what it should, and passes the tests of what became C."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HOOK = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]
MODULES = sorted(path for pattern in HOOK["custom"]["modules"] for path in ROOT.glob(pattern))
BUILD_TIMEOUT_S, TESTS_TIMEOUT_S, COMMAND_TIMEOUT_S = 600, 600, 60
SUITES = ("tests/unit/serving", "tests/fuzz")  # of the front, beside oracles and another front; hostile octets

# What a server loads; says which of it was compiled, and what of the compiler's came along.
LOOK = """
import json, sys
import holdfast.serving.server, holdfast.serving.native.front
ours = {name: module.__file__ for name, module in sys.modules.items() if name.startswith("holdfast.")}
compiled = sorted(name for name, file in ours.items() if file.endswith(".so"))
print(json.dumps([compiled, sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def test_every_pattern_names_modules_that_are_there() -> None:
    for pattern in HOOK["custom"]["modules"]:
        assert list(ROOT.glob(pattern)), pattern


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(command, check=True, timeout=BUILD_TIMEOUT_S, env={**os.environ, "HATCH_BUILD_HOOKS_ENABLE": "1"})
    (path,) = folder.glob("holdfast-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Surroundings in which the compiled modules are found before the checkout's."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(folder), str(wheel)]
    subprocess.run(command, check=True, timeout=COMMAND_TIMEOUT_S)
    return {**os.environ, "PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_wheel_is_for_this_machine_and_holds_sources_beside_what_was_compiled(wheel: Path) -> None:
    assert not wheel.name.endswith("none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()

    for module in MODULES:
        name = str(module.relative_to(ROOT / "runtime").with_suffix(""))
        assert f"{name}.py" in names
        assert [each for each in names if each.startswith(f"{name}.cpython-") and each.endswith(".so")], name
    assert len([name for name in names if name.endswith(".so")]) == len(MODULES) + 1  # and what they share


@pytest.mark.slow
def test_missing_compiler_is_told_with_what_to_do_and_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    (tmp_path / "left").mkdir()
    asked = {"HATCH_BUILD_HOOKS_ENABLE": "1", "CC": str(tmp_path / "no-compiler"), "TMPDIR": str(tmp_path / "left")}
    done = subprocess.run(
        command, env={**os.environ, **asked}, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False
    )

    assert done.returncode != 0
    assert "Without the variable HATCH_BUILD_HOOKS_ENABLE" in done.stdout + done.stderr
    assert not list((tmp_path / "left").glob("holdfast-compile-*"))


@pytest.mark.slow
def test_server_runs_what_was_compiled_and_none_of_the_compiler(installed: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK],
        env=installed,
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
        check=True,
    )
    compiled, packages = json.loads(done.stdout)
    told = subprocess.run(
        [sys.executable, "-m", "holdfast", "--version"], env=installed, capture_output=True, text=True, check=True
    )

    expected = [".".join(path.relative_to(ROOT / "runtime").with_suffix("").parts) for path in MODULES]
    assert compiled == sorted(expected)
    assert not {"mypy", "mypyc", "mypy_extensions", "librt", "setuptools"} & set(packages)
    assert told.stdout.endswith("(compiled)\n")


@pytest.mark.slow
def test_compiled_front_passes_the_tests_of_the_front(installed: dict[str, str]) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-o", "pythonpath=.", "-m", "not slow", *SUITES]
    done = subprocess.run(
        command, cwd=ROOT, env=installed, capture_output=True, text=True, timeout=TESTS_TIMEOUT_S, check=False
    )

    assert done.returncode == 0, done.stdout[-4_000:]
