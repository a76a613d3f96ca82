"""Our messages are the protocol's: same names, numbers and types as an installed client's, and no clash with it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from tritonclient.grpc import service_pb2

from holdfast.serving import oip_pb2

ROOT = Path(__file__).resolve().parents[3]


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


@pytest.mark.parametrize("name", sorted(oip_pb2.DESCRIPTOR.message_types_by_name))
def test_message_is_the_clients(name: str) -> None:
    ours = oip_pb2.DESCRIPTOR.message_types_by_name[name]
    theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]

    assert ours.full_name == theirs.full_name
    assert shape_of(ours) == shape_of(theirs)


def test_calls_are_the_clients() -> None:
    ours = oip_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    theirs = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

    assert ours.full_name == theirs.full_name
    for method in ours.methods:
        twin = theirs.methods_by_name[method.name]
        assert (method.input_type.full_name, method.output_type.full_name) == (
            twin.input_type.full_name,
            twin.output_type.full_name,
        )


def test_messages_live_in_a_pool_of_their_own() -> None:
    assert oip_pb2.DESCRIPTOR.pool is not service_pb2.DESCRIPTOR.pool
    assert oip_pb2.ModelInferRequest is not service_pb2.ModelInferRequest


def test_bytes_of_one_are_read_by_the_other() -> None:
    ours = oip_pb2.ModelInferRequest(model_name="m", id="7", raw_input_contents=[b"\1\2"])
    ours.inputs.add(name="x", datatype="UINT8", shape=[2]).parameters["k"].int64_param = -5

    theirs = service_pb2.ModelInferRequest.FromString(ours.SerializeToString())

    assert theirs.inputs[0].parameters["k"].int64_param == -5
    assert oip_pb2.ModelInferRequest.FromString(theirs.SerializeToString()) == ours


def test_generated_module_holds_the_proto_file_as_it_stands() -> None:
    """Without the generator: every field line of the .proto file is in the checked-in descriptor."""
    source = (ROOT / "protos" / "inference" / "grpc_service.proto").read_text(encoding="utf-8")
    found = 0
    for line in source.splitlines():
        code = line.split("//")[0].strip()
        if code.endswith(";") and "=" in code and not code.startswith("syntax"):
            name, number = code.rstrip(";").rsplit("=", 1)[0].split()[-1], int(code.rstrip(";").rsplit("=", 1)[1])
            assert any(
                (name, number) in {(field.name, field.number) for field in message.fields}
                for message in _all_messages()
            )
            found += 1

    assert found == sum(len(message.fields) for message in _all_messages() if not message.GetOptions().map_entry)


def test_generator_is_importable_without_its_environment() -> None:
    spec = importlib.util.spec_from_file_location("generate_inference", ROOT / "protos" / "generate_inference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)

    spec.loader.exec_module(module)

    assert module.PROTO.exists()
    assert module.TARGET.with_suffix(".pyi").exists()


def _all_messages() -> list[Descriptor]:
    queue = list(oip_pb2.DESCRIPTOR.message_types_by_name.values())
    for message in queue:
        queue.extend(message.nested_types)
    return queue
