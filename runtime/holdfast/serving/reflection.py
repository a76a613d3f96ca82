"""Server reflection, v1 and v1alpha: tools like grpcurl ask here which calls there are and what they carry.

Rules: only what this server offers is told; an unknown name or a kind of question that is not offered (extensions: our
files have none) is an error inside the answer, and the stream goes on. Source: grpc/doc/server-reflection.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from google.protobuf.descriptor import FileDescriptor

from holdfast.serving import health_pb2, oip_pb2, reflection_v1_pb2, reflection_v1alpha_pb2
from holdfast.serving.oip import parse

NOT_FOUND = 5  # of google.rpc.Code
UNIMPLEMENTED = 12
MAX_NAME_CHARS = 200  # of a question's own words in its answer
REFLECTED = (oip_pb2, health_pb2, reflection_v1_pb2, reflection_v1alpha_pb2)


class Reflection:
    """Answers reflection questions about some files. Never changes."""

    def __init__(self, files: Sequence[FileDescriptor]) -> None:
        self._services = sorted(service.full_name for file in files for service in file.services_by_name.values())
        self._by_name = {file.name: bytes(file.serialized_pb) for file in files}  # made anew at each look: look once
        self._by_symbol = {symbol: self._by_name[file.name] for file in files for symbol in _symbols(file)}

    def answer_v1(self, data: bytes) -> bytes:
        """The bytes of a v1 ServerReflectionResponse. Raises RequestError: not a request."""
        question = parse(reflection_v1_pb2.ServerReflectionRequest, data)
        answer = reflection_v1_pb2.ServerReflectionResponse(valid_host=question.host, original_request=question)
        self._fill(question, answer)
        return answer.SerializeToString()

    def answer_v1alpha(self, data: bytes) -> bytes:
        """The bytes of a v1alpha ServerReflectionResponse. Raises RequestError: not a request."""
        question = parse(reflection_v1alpha_pb2.ServerReflectionRequest, data)
        answer = reflection_v1alpha_pb2.ServerReflectionResponse(valid_host=question.host, original_request=question)
        self._fill(question, answer)
        return answer.SerializeToString()

    def _fill(
        self,
        question: reflection_v1_pb2.ServerReflectionRequest | reflection_v1alpha_pb2.ServerReflectionRequest,
        answer: reflection_v1_pb2.ServerReflectionResponse | reflection_v1alpha_pb2.ServerReflectionResponse,
    ) -> None:
        kind = question.WhichOneof("message_request")
        if kind == "list_services":
            for name in self._services:
                answer.list_services_response.service.add(name=name)
            return
        if kind not in ("file_by_filename", "file_containing_symbol"):
            answer.error_response.error_code = UNIMPLEMENTED
            answer.error_response.error_message = "there are no extensions here"
            return
        table = self._by_name if kind == "file_by_filename" else self._by_symbol
        name = str(getattr(question, kind))
        if name in table:
            answer.file_descriptor_response.file_descriptor_proto.append(table[name])
        else:
            answer.error_response.error_code = NOT_FOUND
            answer.error_response.error_message = f"not found: {name[:MAX_NAME_CHARS]}"


@cache
def own_reflection() -> Reflection:
    """The reflection of this server's own calls, made once."""
    return Reflection([module.DESCRIPTOR for module in REFLECTED])


def _symbols(file: FileDescriptor) -> list[str]:
    """Full names of all services, methods, messages, fields and enums."""
    symbols: list[str] = []
    for service in file.services_by_name.values():
        symbols += [service.full_name, *(method.full_name for method in service.methods)]
    messages = list(file.message_types_by_name.values())
    enums = list(file.enum_types_by_name.values())
    for message in messages:
        messages += message.nested_types
        enums += message.enum_types
        symbols += [message.full_name, *(field.full_name for field in message.fields)]
    return symbols + [enum.full_name for enum in enums]
