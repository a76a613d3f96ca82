"""A running server beside the in-process limit, in alternating blocks of one run.

Rules: same inputs, same machine, A B A B, so that a change of the machine hits both; the answers are compared, and a
ratio between different answers is not printed as if they were the same. The figures of the server contain the cost of
this client, a Python one over gRPC; they are what such a client sees, not the server's own time.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc
import numpy as np

from holdfast.bench.latency import Latencies, measure, report, warm_up
from holdfast.clock import Clock
from holdfast.errors import LinkError
from holdfast.inference.session import ModelSession
from holdfast.inference.tensors import Array, TensorRequest
from holdfast.serving.oip import decode_response, encode_request
from holdfast.serving.server import Address

BLOCKS = 10  # of each kind; their ratios show how steady the comparison is
CALL_TIMEOUT_S = 60.0
METHOD = "/inference.GRPCInferenceService/ModelInfer"


def compare_with_server(
    session: ModelSession, inputs: Mapping[str, Array], address: Address, model: str, seconds: float, clock: Clock
) -> tuple[Latencies, dict[str, object]]:
    """In-process latencies, and the server's as JSON fields with the ratio between them.

    Raises:
        LinkError: the server cannot be reached or refuses the request.
    """
    here, there = Latencies(), Latencies()
    ratios: list[float] = []
    data = encode_request(TensorRequest(model, "", "", inputs))
    with grpc.insecure_channel(str(address), options=[("grpc.max_receive_message_length", -1)]) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)

        def run_here() -> dict[str, Array]:
            return session.run(inputs)

        def run_there() -> bytes:
            answer: bytes = infer(data, timeout=CALL_TIMEOUT_S, wait_for_ready=False)
            return answer

        try:
            same = _same(run_here(), decode_response(run_there()).outputs)
            warm_up(run_here)
            warm_up(run_there)
            for _ in range(BLOCKS):
                block_here, block_there = Latencies(), Latencies()
                measure(run_here, seconds / (2 * BLOCKS), clock, block_here)
                measure(run_there, seconds / (2 * BLOCKS), clock, block_there)
                ratios.append(
                    float(np.median(block_there.latency_ns) / max(1.0, float(np.median(block_here.latency_ns))))
                )
                _extend(here, block_here)
                _extend(there, block_there)
        except grpc.RpcError as error:
            why = f"{error.code().name} {error.details()}"
            raise LinkError(
                f"{address} did not answer for model '{model}': {why}; is it running, and is the name right?"
            ) from error
    clean_reason = "the calling thread sleeps while the server works; its run queue says little about the server"
    fields = {
        "address": str(address),
        "model": model,
        "transport": "grpc, one call in flight",
        "answers_equal": same,
        "latency_ns": report(there, clean_reason=clean_reason),
        "ratio_p50": _spread(ratios) if same else None,
        "ratio_reason": None
        if same
        else "the server answers otherwise than this file in process; is it the same model?",
    }
    return here, fields


def _spread(ratios: list[float]) -> dict[str, float]:
    low, middle, high = np.quantile(ratios, [0.0, 0.5, 1.0]).round(3).tolist()
    return {"min": low, "median": middle, "max": high}


def _same(ours: Mapping[str, Array], theirs: Mapping[str, Array]) -> bool:
    """Same names, types, shapes and bits."""

    def bits(outputs: Mapping[str, Array]) -> dict[str, object]:
        return {
            name: (a.dtype.str, a.shape, a.ravel().tolist() if a.dtype == np.object_ else a.tobytes())
            for name, a in outputs.items()
        }

    return bits(ours) == bits(theirs)


def _extend(total: Latencies, block: Latencies) -> None:
    total.latency_ns += block.latency_ns
    total.queued_ns += block.queued_ns
    total.tagged = total.tagged and block.tagged
