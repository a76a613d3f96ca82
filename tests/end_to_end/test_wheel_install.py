"""What we hand out: the wheel holds what it should, and alone, without extras, it serves a model to real clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from holdfast.inference.example_model import digit_templates

ROOT = Path(__file__).resolve().parents[2]
BUILD_TIMEOUT_S, INSTALL_TIMEOUT_S, COMMAND_TIMEOUT_S = 300, 900, 60
# What the wheels hold: onnxruntime, numpy, grpcio, protobuf, cryptography, what these need, and us. Not counted: the
# bytecode that Python writes on first use (25 MB more), and the installer that an environment is made with.
MAX_SITE_PACKAGES_BYTES = 175_000_000
INSTALLERS = {"pip", "setuptools", "pkg_resources", "_distutils_hack"}
FOREIGN = {"flwr", "onnx", "torch", "sklearn", "starlette", "uvicorn", "tritonclient", "holdfast_federation"}
FOREIGN |= {"grpc"}  # for calls that leave the device, and for the other front: serving does without

# The same entry function as the `holdfast` script; tells what the process holds when serving has ended.
WATCHED = """
import json, sys
from holdfast.cli.main import main
code = main(sys.argv[1:])
modules = {name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}
print(json.dumps(modules))
sys.exit(code)
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run(command, check=True, timeout=BUILD_TIMEOUT_S)
    (path,) = folder.glob("holdfast-*.whl")
    return path


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that holds the wheel and its dependencies without extras."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=True)
    install = ("-m", "pip", "install", "--quiet", "--no-compile", str(wheel))
    run(folder / "bin" / "python", *install, timeout_s=INSTALL_TIMEOUT_S)
    return folder


def run(program: Path, *arguments: str, timeout_s: float = COMMAND_TIMEOUT_S) -> subprocess.CompletedProcess[str]:
    """Run a program of the fresh environment away from the checkout; fails with what it said."""
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, timeout=timeout_s, check=False, **surroundings(program)
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done


def surroundings(program: Path) -> dict[str, object]:
    """Neither the checkout nor this environment is visible to the child."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {"cwd": program.parent, "env": kept}


@contextmanager
def served(fresh: Path, model: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    script = fresh / "watched.py"
    script.write_text(WATCHED, encoding="utf-8")
    python = fresh / "bin" / "python"
    command = [python, script, "serve", model, "--json", "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **surroundings(python)) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.wait(COMMAND_TIMEOUT_S)
            yield process, json.loads(line)["listen"]
        finally:
            process.kill()


def ask(kind: object, address: str, pixels: np.ndarray) -> list[int]:
    with kind.InferenceServerClient(address) as client:  # type: ignore[attr-defined]  # a module
        tensor = kind.InferInput("pixels", list(pixels.shape), "FP32")  # type: ignore[attr-defined]
        tensor.set_data_from_numpy(pixels)
        answer: list[int] = client.infer("digits", [tensor]).as_numpy("digit").tolist()
        return answer


def installer(path: Path) -> bool:
    """Whether a file of site-packages belongs to what installs, not to what is installed."""
    return path.parts[0].partition("-")[0] in INSTALLERS or path.name == "distutils-precedence.pth"


def test_wheel_holds_both_packages_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"holdfast", "holdfast_federation"}
    assert {"holdfast/py.typed", "holdfast_federation/py.typed"} <= names
    assert {"holdfast/wire/v1/report_pb2.py", "holdfast_federation/dashboard/templates/page.html"} <= names
    unwanted = ("/tests/", "test_", "README", "/decisions/", ".proto", "__pycache__", "conftest")
    assert [name for name in names if any(part in f"/{name}" for part in unwanted)] == []
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_wheel_holds_every_module_of_the_checkout(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    roots = (ROOT / "runtime", "holdfast"), (ROOT / "federation", "holdfast_federation")

    modules = {str(path.relative_to(root)) for root, package in roots for path in (root / package).rglob("*.py")}

    assert modules - names == set()


def test_wheel_alone_answers_grpc_and_http_and_loads_nothing_heavy(fresh: Path, tmp_path: Path) -> None:
    model, pixels = tmp_path / "digits.onnx", digit_templates()
    run(fresh / "bin" / "holdfast", "example", str(model))

    with served(fresh, model) as (process, address):
        by_grpc = ask(tritonclient.grpc, address, pixels)
        by_http = ask(tritonclient.http, address, pixels)
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)

    assert by_grpc == by_http == list(range(10))
    assert process.returncode == 0
    modules: dict[str, str] = json.loads(rest)
    assert {"holdfast", "onnxruntime"} <= set(modules)
    assert {name.split(".")[0] for name in modules} & FOREIGN == set()
    assert [file for file in modules.values() if file.startswith(str(ROOT))] == [], "the checkout was on the path"


def test_wheel_alone_stays_small(fresh: Path) -> None:
    (site_packages,) = fresh.glob("lib/python3.*/site-packages")

    size_bytes = sum(
        path.lstat().st_size
        for path in site_packages.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not installer(path.relative_to(site_packages))
    )

    assert size_bytes < MAX_SITE_PACKAGES_BYTES, f"{size_bytes / 1e6:.1f} MB"


def test_wheel_alone_shows_all_its_help(fresh: Path) -> None:
    done = run(fresh / "bin" / "holdfast", "--help")

    for command in ("serve", "example", "bench", "agent", "coordinator", "evidence"):
        assert command in done.stdout


def test_wheel_alone_names_the_missing_extra(fresh: Path, tmp_path: Path) -> None:
    holdfast = fresh / "bin" / "holdfast"
    command = [holdfast, "demo"]

    done = subprocess.run(
        command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=False, **surroundings(holdfast)
    )

    assert done.returncode == 2, done.stderr
    assert "holdfast[" in done.stderr
    assert "Traceback" not in done.stderr
