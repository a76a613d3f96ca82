"""Our messages are the protocol's: same names, numbers and types as an installed client's, and no clash with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FileDescriptor
from grpc_health.v1 import health_pb2 as their_health_pb2
from tritonclient.grpc import model_config_pb2, service_pb2

from holdfast.serving import health_pb2, oip_pb2, reflection_v1_pb2, reflection_v1alpha_pb2

ROOT = Path(__file__).resolve().parents[3]
OURS = set(oip_pb2.DESCRIPTOR.message_types_by_name)
THEIRS = service_pb2.DESCRIPTOR.message_types_by_name
THEIR_CONFIG = model_config_pb2.DESCRIPTOR.message_types_by_name
SOURCES = {
    "inference/grpc_service": oip_pb2,
    "grpc_standard/health": health_pb2,
    "grpc_standard/reflection_v1": reflection_v1_pb2,
    "grpc_standard/reflection_v1alpha": reflection_v1alpha_pb2,
}


def shape_of(message: Descriptor) -> dict[str, object]:
    """Field number, type and cardinality by name, messages inside included."""
    fields = {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else None,
            field.containing_oneof.name if field.containing_oneof else None,
        )
        for field in message.fields
    }
    return {**fields, **{nested.name: shape_of(nested) for nested in message.nested_types}}


@pytest.mark.parametrize("name", sorted(OURS & set(THEIRS)))
def test_message_is_the_clients(name: str) -> None:
    ours = oip_pb2.DESCRIPTOR.message_types_by_name[name]

    assert ours.full_name == THEIRS[name].full_name
    assert shape_of(ours) == shape_of(THEIRS[name])


@pytest.mark.parametrize("name", sorted(OURS - set(THEIRS)))
def test_message_of_the_configuration_is_a_part_of_the_clients(name: str) -> None:
    ours, theirs = shape_of(oip_pb2.DESCRIPTOR.message_types_by_name[name]), shape_of(THEIR_CONFIG[name])

    assert ours.items() <= theirs.items()


@pytest.mark.parametrize("name", sorted(oip_pb2.DESCRIPTOR.enum_types_by_name))
def test_enum_is_the_clients(name: str) -> None:
    ours = oip_pb2.DESCRIPTOR.enum_types_by_name[name]
    theirs = model_config_pb2.DESCRIPTOR.enum_types_by_name[name]

    assert [(v.name, v.number) for v in ours.values] == [(v.name, v.number) for v in theirs.values]


def test_health_is_the_standard_one() -> None:
    for name, theirs in their_health_pb2.DESCRIPTOR.message_types_by_name.items():
        ours = health_pb2.DESCRIPTOR.message_types_by_name[name]
        assert shape_of(ours) == shape_of(theirs)
        for kind, enum in theirs.enum_types_by_name.items():
            assert {v.name: v.number for v in ours.enum_types_by_name[kind].values} == {
                v.name: v.number for v in enum.values
            }
    assert calls_of(health_pb2.DESCRIPTOR) == calls_of(their_health_pb2.DESCRIPTOR)


def test_calls_are_the_clients() -> None:
    ours, theirs = calls_of(oip_pb2.DESCRIPTOR), calls_of(service_pb2.DESCRIPTOR)

    assert ours.items() <= theirs.items()


def calls_of(file: FileDescriptor) -> dict[str, tuple[str, str, bool, bool]]:
    """Input, output and streaming of every call, by full name."""
    return {
        method.full_name: (
            method.input_type.full_name,
            method.output_type.full_name,
            method.client_streaming,
            method.server_streaming,
        )
        for service in file.services_by_name.values()
        for method in service.methods
    }


def test_messages_live_in_a_pool_of_their_own() -> None:
    assert oip_pb2.DESCRIPTOR.pool is not service_pb2.DESCRIPTOR.pool
    assert oip_pb2.ModelInferRequest is not service_pb2.ModelInferRequest


def test_bytes_of_one_are_read_by_the_other() -> None:
    ours = oip_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"\1\2"])
    ours.inputs.add(name="x", datatype="UINT8", shape=[2]).parameters["k"].int64_param = -5

    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())

    assert theirs.inputs[0].parameters["k"].int64_param == -5
    assert oip_pb2.ModelInferRequest.FromString(theirs.SerializeToString()) == ours


@pytest.mark.parametrize("source", SOURCES)
def test_generated_module_holds_the_proto_file_as_it_stands(source: str) -> None:
    """Without the generator: every numbered line of the .proto file is in the checked-in descriptor."""
    lines = (ROOT / "protos" / f"{source}.proto").read_text(encoding="utf-8").splitlines()
    numbered = [code for line in lines if " = " in (code := line.split("//")[0].strip()) and code.endswith(";")]
    written = [
        (code.split(" = ")[0].split()[-1], int(code.rstrip(";").split(" = ")[1]))
        for code in numbered
        if not code.startswith("syntax")
    ]

    assert sorted(written) == sorted(_numbers(SOURCES[source].DESCRIPTOR))


def test_generator_is_importable_without_its_environment() -> None:
    spec = importlib.util.spec_from_file_location("generate_inference", ROOT / "protos" / "generate_inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    spec.loader.exec_module(module)

    for target, proto in module.MODULES.items():
        assert proto.exists()
        assert target.with_suffix(".pyi").exists()


def _numbers(file: FileDescriptor) -> list[tuple[str, int]]:
    """Name and number of every field and every enum value."""
    queue = list(file.message_types_by_name.values())
    enums = list(file.enum_types_by_name.values())
    found: list[tuple[str, int]] = []
    for message in queue:
        if not message.GetOptions().map_entry:
            queue.extend(message.nested_types)
            enums.extend(message.enum_types)
            found += [(field.name, field.number) for field in message.fields]
    return found + [(value.name, value.number) for enum in enums for value in enum.values]
