"""Installs the peers: `python -m benchmarks.peers.install [NAME...]`, each in an environment of its own.

They go to `benchmarks/.cache/peers`, which git ignores; nothing of Holdfast needs them. Versions are pinned, so that a
table can be made again. A peer that does not install leaves its reason beside the others and is told as not run.
"""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from benchmarks.replay import CACHE

FOLDER = CACHE / "peers"
RUNTIME = ("onnxruntime==1.32.0", "numpy==2.4.6")
REQUIREMENTS: dict[str, tuple[str, ...]] = {
    "uvicorn": ("uvicorn[standard]==0.54.0", *RUNTIME),
    "mlserver": ("mlserver==1.7.1", "onnxruntime"),
    "kserve": ("kserve==0.21.0", "onnxruntime"),
    "litserve": ("litserve==0.2.19", *RUNTIME),
}
INSTALL_S = 900


def main(names: Sequence[str]) -> int:
    """Install these peers, or all."""
    for name in names or REQUIREMENTS:
        print(f"{name} ...", flush=True)
        print(f"  {reason_against(name) or 'installed'}" if _install(name) else f"  {reason_against(name)}", flush=True)
    return 0


def python_of(name: str) -> Path:
    """The interpreter of a peer's environment."""
    return FOLDER / name / "bin" / "python"


def reason_against(name: str) -> str:
    """Why a peer cannot run; empty if it can."""
    failed = FOLDER / f"{name}.failed"
    if failed.exists():
        return failed.read_text(encoding="utf-8")
    if not (FOLDER / name / "installed").exists():
        return f"not installed; run: python -m benchmarks.peers.install {name}"
    return ""


def _install(name: str) -> bool:
    place, failed = FOLDER / name, FOLDER / f"{name}.failed"
    if (place / "installed").exists():
        return True
    failed.unlink(missing_ok=True)
    venv.create(place, with_pip=True, clear=True)
    command = [str(python_of(name)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*command, *REQUIREMENTS[name]], capture_output=True, text=True, timeout=INSTALL_S)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        failed.write_text(f"does not install: {(lines or ['pip failed'])[-1]}", encoding="utf-8")
        return False
    (place / "installed").write_text("\n".join(REQUIREMENTS[name]) + "\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
