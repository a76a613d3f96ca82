"""A client that knows nothing but an address: `python reflection_client.py HOST:PORT`, in .venv-conformance.

It learns services, methods and messages from gRPC's own reflection client, then infers with what it learned.
"""

from __future__ import annotations

import json
import struct
import sys

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

SERVICE = "inference.GRPCInferenceService"


def call(channel: grpc.Channel, method: MethodDescriptor, **fields: object) -> Message:
    answer = GetMessageClass(method.output_type)
    asked = GetMessageClass(method.input_type)(**fields)
    path = f"/{method.containing_service.full_name}/{method.name}"
    made = channel.unary_unary(
        path, request_serializer=type(asked).SerializeToString, response_deserializer=answer.FromString
    )
    return made(asked, timeout=60)


def main() -> None:
    with grpc.insecure_channel(sys.argv[1]) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        services = sorted(database.get_services())
        methods = DescriptorPool(database).FindServiceByName(SERVICE).methods_by_name
        server = call(channel, methods["ServerMetadata"])
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4]}
        raw = struct.pack("<4f", 1, 2, 3, 4)
        answer = call(channel, methods["ModelInfer"], model_name="double", inputs=[tensor], raw_input_contents=[raw])
        y = struct.unpack("<4f", answer.raw_output_contents[0])
        absent = []
        for method in methods.values():  # every method that is told of is there: none answers "Method not found!"
            if not method.client_streaming:
                try:
                    call(channel, method)
                except grpc.RpcError as error:
                    if error.details() == "Method not found!":
                        absent.append(method.name)
    print(json.dumps({"services": services, "name": server.name, "y": y, "methods": len(methods), "absent": absent}))


if __name__ == "__main__":
    main()
