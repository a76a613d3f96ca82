"""The generated modules are what the pinned generator makes, and version 1 keeps its field numbers."""

from __future__ import annotations

import subprocess
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet

from holdfast.wire.v1 import enrolment_pb2, envelope_pb2, fleet_pb2, ledger_pb2, report_pb2, rounds_pb2

ROOT = Path(__file__).resolve().parents[3]
MODULES = (enrolment_pb2, envelope_pb2, fleet_pb2, ledger_pb2, report_pb2, rounds_pb2)


def test_generated_modules_are_fresh() -> None:
    python = ROOT / ".venv-protos" / "bin" / "python"
    assert python.exists(), "the generator's environment is missing; run: make .venv-protos"

    run = subprocess.run(
        [python, "protos/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )

    assert run.returncode == 0, run.stdout + run.stderr


def test_no_field_of_version_1_was_removed_renumbered_or_retyped() -> None:
    accepted = FileDescriptorSet.FromString((ROOT / "tests/vectors/wire/v1.desc").read_bytes())
    present = {module.DESCRIPTOR.name: _fields(module.DESCRIPTOR) for module in MODULES}

    for file in accepted.file:
        if file.name in present:
            lost = {key: kind for key, kind in _walk(file.message_type, "") if present[file.name].get(key) != kind}
            assert not lost, f"{file.name}: {lost}"


def _fields(descriptor: object) -> dict[tuple[str, str, int], int]:
    proto = FileDescriptorProto()
    descriptor.CopyToProto(proto)  # type: ignore[attr-defined]  # FileDescriptor has it; the stub calls it object
    return dict(_walk(proto.message_type, ""))


def _walk(types: object, prefix: str) -> list[tuple[tuple[str, str, int], int]]:
    rows = []
    for message in types:  # type: ignore[attr-defined]  # a repeated DescriptorProto
        assert isinstance(message, DescriptorProto)
        name = f"{prefix}{message.name}"
        rows += [((name, field.name, field.number), field.type) for field in message.field]
        rows += _walk(message.nested_type, f"{name}.")
    return rows
