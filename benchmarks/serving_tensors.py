"""A tensor of 602 kB (3 x 224 x 224, float32) into a model that does next to nothing: over gRPC, and in shared memory.

The model is one ReduceMax. Eight different tensors take turns, one or four requests in flight, answers checked; the run
of the model in this process stands beside. gRPC's C core makes its frames as large as the server takes them, which is
`gRPC` here; Go and Node leave them at 16 KiB. In shared memory only the place of the tensor goes over the socket; the
region is registered on the admin socket beforehand. The aims: 300 us of the server's CPU over gRPC, 50 us in shared
memory.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import grpc
import numpy as np
from benchmarks.harness import NotRun, Options, Outcome, compare
from benchmarks.in_process import bare, looped
from benchmarks.replay import NoCompilerError, built, replaying
from benchmarks.serving_calls import Call, framed, varied_calls
from benchmarks.serving_models import IMAGE, MODELS, repository
from benchmarks.serving_native import replayed
from benchmarks.serving_subjects import holdfast

from holdfast.serving import oip_pb2
from holdfast.serving.http2.limits import Http2Limits
from holdfast.serving.oip import decode_request

MODEL, REGION = "largest", "tensors"
TENSOR_BYTES = 4 * IMAGE[0] * IMAGE[1] * IMAGE[2]
CALLS = 8
IN_FLIGHT = (1, 4)
BLOCK_S = 0.7
ROUNDS = 9
REGISTER = "/inference.GRPCInferenceService/SystemSharedMemoryRegister"
SHARED_MEMORY = Path("/dev/shm")


def run(options: Options) -> list[Outcome]:
    try:
        built()
    except NoCompilerError as error:
        return [NotRun("serving/602 kB", str(error))]
    outcomes: list[Outcome] = []
    rounds = 1 if options.quick else ROUNDS
    session = bare(MODELS[MODEL]())
    with ExitStack() as stack:
        admin = Path(stack.enter_context(tempfile.TemporaryDirectory()), "admin.sock")
        flags = ("--shared-memory", "--admin-socket", str(admin))
        server = stack.enter_context(holdfast(stack.enter_context(repository((MODEL,))), *flags))
        greeting, calls = varied_calls((MODEL,), count=CALLS, rows=(1,), frame_bytes=Http2Limits().max_frame_bytes)
        inputs = [decode_request(call.message).inputs for call in calls]
        stack.enter_context(region(admin, [each["x"] for each in inputs]))
        turns = cycle(inputs)
        loop = ("session.run in a loop", looped(lambda: session.run(None, next(turns)), 1, options, BLOCK_S))
        small, in_memory = framed(calls), framed(shared(calls))
        for way, made in (("gRPC", (greeting, calls)), ("gRPC in 16 KiB", small), ("shared memory", in_memory)):
            replay = stack.enter_context(replaying(server.address, *made))
            for in_flight in IN_FLIGHT:
                there = replayed(server, replay, options, in_flight=in_flight, cpu_is="cpu_us")
                name = f"serving/602 kB, {way}"
                outcomes += compare(name, loop, (f"{way}, {in_flight} in flight", there), rounds)
    return outcomes


def shared(calls: Sequence[Call]) -> list[Call]:
    """The same calls, each with the place of its tensor in the region instead of the tensor."""
    made = []
    for place, call in enumerate(calls):
        request = oip_pb2.ModelInferRequest.FromString(call.message)
        del request.raw_input_contents[:]
        parameters = request.inputs[0].parameters
        parameters["shared_memory_region"].string_param = REGION
        parameters["shared_memory_byte_size"].int64_param = TENSOR_BYTES
        parameters["shared_memory_offset"].int64_param = place * TENSOR_BYTES
        made.append(Call(request.SerializeToString(), call.expected, call.request_id))
    return made


@contextmanager
def region(admin: Path, tensors: Sequence[np.ndarray]) -> Iterator[None]:
    """Shared memory that holds the tensors one after another, registered with the server; removed afterwards."""
    file = SHARED_MEMORY / f"holdfast-benchmark-{os.getpid()}"
    try:
        file.write_bytes(b"".join(tensor.tobytes() for tensor in tensors))
        request = oip_pb2.SystemSharedMemoryRegisterRequest(
            name=REGION, key=f"/{file.name}", offset=0, byte_size=len(tensors) * TENSOR_BYTES
        )
        with grpc.insecure_channel(f"unix:{admin}") as channel:
            channel.unary_unary(REGISTER)(request.SerializeToString(), timeout=10.0)
        yield
    finally:
        file.unlink(missing_ok=True)
