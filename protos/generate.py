"""Generate the Python modules of protos/ into runtime/, or compare what is checked in (`--check`).

Runs in an environment of its own (see requirements.txt beside this file): the generator's protobuf must not be the
one that flwr pins. `make protos` sets it up.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos" / "holdfast" / "wire" / "v1"
OUTPUT = Path("holdfast") / "wire" / "v1"
DESCRIPTOR = ROOT / "tests" / "vectors" / "wire" / "v1.desc"


def generate(destination: Path) -> None:
    """Write the modules and their type stubs under `destination`/holdfast/wire/v1."""
    from grpc_tools import protoc

    bundled = Path(protoc.__file__).parent / "_proto"
    bin_folder = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"-I{ROOT / 'protos'}",
        f"-I{bundled}",
        f"--plugin=protoc-gen-mypy={bin_folder / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={bin_folder / 'protoc-gen-mypy_grpc'}",
        f"--python_out={destination}",
        f"--grpc_python_out={destination}",
        f"--mypy_out=quiet:{destination}",
        f"--mypy_grpc_out=quiet:{destination}",
        *(str(path) for path in sorted(SOURCES.glob("*.proto"))),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message stands above")
    for source in SOURCES.glob("*.proto"):
        if "\nservice " not in source.read_text(encoding="utf-8"):  # the generator writes an empty stub module
            for path in (destination / OUTPUT).glob(f"{source.stem}_pb2_grpc.py*"):
                path.unlink()


def write_descriptor(path: Path) -> None:
    """Write the FileDescriptorSet that the compatibility test compares with."""
    from grpc_tools import protoc

    arguments = ["protoc", f"-I{ROOT / 'protos'}", f"--descriptor_set_out={path}"]
    if protoc.main([*arguments, *(str(source) for source in sorted(SOURCES.glob("*.proto")))]) != 0:
        raise SystemExit("protoc failed; its message stands above")


def check() -> int:
    """Compare a fresh generation with what is checked in; print what differs."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {p.name: p.read_bytes() for p in (Path(folder) / OUTPUT).iterdir()}
        present = {p.name: p.read_bytes() for p in (ROOT / "runtime" / OUTPUT).glob("*_pb2*")}
    stale = sorted(name for name in fresh.keys() | present.keys() if fresh.get(name) != present.get(name))
    for name in stale:
        print(f"not what the generator makes: runtime/{OUTPUT}/{name}; run: make protos")
    return 1 if stale else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only; exit 1 if something is stale")
    parser.add_argument("--accept", action="store_true", help="also refresh the descriptor of the compatibility test")
    arguments = parser.parse_args()
    if arguments.check:
        return check()
    generate(ROOT / "runtime")
    if arguments.accept:
        DESCRIPTOR.parent.mkdir(parents=True, exist_ok=True)
        write_descriptor(DESCRIPTOR)
    return 0


if __name__ == "__main__":
    sys.exit(main())
