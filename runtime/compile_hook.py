"""Compiles the modules that every tensor request passes through, for wheels that were asked for it:

    HATCH_BUILD_HOOKS_ENABLE=1 pip install .

Rules: the same sources become C by mypyc; they lie in the wheel too, and what they say is what happens. Without the
variable nothing here runs. An editable install is never compiled: it would go on running what was compiled while its
sources change. Which modules, says pyproject.toml; why, and what it saves, decision 0014.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# The types were checked before, with all that is imported. Here only our own modules and numpy's types are in reach.
MYPY_INI = """
[mypy]
explicit_package_bases = true
follow_imports = silent
ignore_missing_imports = true
[mypy-numpy.*]
ignore_errors = true
"""


WITHOUT = (
    "It wants a C compiler and Python's headers (Debian: apt install gcc python3-dev). Without the variable "
    "HATCH_BUILD_HOOKS_ENABLE it is installed as Python, does the same, and wants neither."
)


class CompileHook(BuildHookInterface):
    """Adds the extension modules of `modules` in pyproject.toml to the wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Before the wheel is packed."""
        if version == "editable":
            return
        root, self._folder = Path(self.root), Path(tempfile.mkdtemp(prefix="holdfast-compile-"))
        modules = sorted(path.relative_to(root) for pattern in self.config["modules"] for path in root.glob(pattern))
        try:
            built = compiled(root, modules, self._folder)
        except BaseException:
            shutil.rmtree(self._folder)
            raise
        for path in built:
            build_data["force_include"][str(path)] = str(path.relative_to(self._folder / "lib"))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """After it."""
        if version != "editable":
            shutil.rmtree(self._folder)


def compiled(root: Path, modules: list[Path], folder: Path) -> list[Path]:
    """Compile `modules`, relative to `root`. Returns the extension modules, and what they share, below `folder`/lib.

    Raises: SystemExit: mypy or the C compiler refused, or there is none; it says why, and what to do.
    """
    from mypyc.build import mypycify  # build requirements: not there unless this was asked for
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext
    from setuptools.errors import BaseError, CompileError, LinkError

    settings = folder / "mypy.ini"
    settings.write_text(MYPY_INI)
    os.environ["MYPYPATH"] = os.pathsep.join((str(root / "runtime"), str(_types(folder / "types"))))
    before = Path.cwd()
    os.chdir(root)  # mypy takes a module's name from its path below here
    try:
        extensions = mypycify(
            [f"--config-file={settings}", f"--cache-dir={folder / 'cache'}", *map(str, modules)],
            opt_level="3",
            debug_level="0",
            group_name="holdfast",
            target_dir=str(folder / "c"),
        )
        command = build_ext(Distribution({"name": "holdfast", "ext_modules": extensions}))
        command.build_lib, command.build_temp = str(folder / "lib"), str(folder / "o")
        command.ensure_finalized()
        command.run()
    except (BaseError, CompileError, LinkError) as error:
        raise SystemExit(f"Holdfast could not be compiled: {error}\n{WITHOUT}") from None
    finally:
        os.chdir(before)
    return [path for path in (folder / "lib").rglob("*") if path.is_file()]


def _types(folder: Path) -> Path:
    """A folder that holds numpy and nothing of what else was installed to build with, which mypy would stumble over."""
    numpy = find_spec("numpy")
    assert numpy is not None, "a build requirement"
    assert numpy.origin is not None, "a package with files"
    folder.mkdir()
    (folder / "numpy").symlink_to(Path(numpy.origin).parent)
    return folder
