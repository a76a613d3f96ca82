"""Models and what they cost, as clients of the protocol read them: fields by name, for JSON or for a message. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from holdfast.inference.pool import ServedModel
from holdfast.inference.session import ModelSession
from holdfast.inference.tensors import TensorSpec
from holdfast.serving.datatypes import DATATYPE_OF
from holdfast.serving.statistics import Key, ModelCounts

LABELS_FILE = "labels.txt"

Value = dict[str, object]


def tensors(specs: Sequence[TensorSpec]) -> list[Value]:
    """Inputs or outputs, as metadata have them."""
    return [{"name": spec.name, "datatype": DATATYPE_OF[spec.dtype], "shape": wire_shape(spec)} for spec in specs]


def config_tensors(specs: Sequence[TensorSpec]) -> list[Value]:
    """The same, as a configuration has them."""
    kinds = {"BYTES": "TYPE_STRING"}
    return [
        {
            "name": spec.name,
            "data_type": kinds.get(DATATYPE_OF[spec.dtype], f"TYPE_{DATATYPE_OF[spec.dtype]}"),
            "dims": wire_shape(spec),
        }
        for spec in specs
    ]


def config_outputs(session: ModelSession) -> list[Value]:
    """Labels are the model's own and name the classes of whatever output a client has classified."""
    outputs = config_tensors(session.outputs)
    return [{**output, "label_filename": LABELS_FILE} for output in outputs] if session.labels else outputs


def wire_shape(spec: TensorSpec) -> list[int]:
    """A declared shape as the protocol writes it: -1 where any size goes."""
    return [-1 if size is None else size for size in spec.shape]


def model_statistics(model: ServedModel, counts: Mapping[Key, ModelCounts]) -> Value:
    """As Triton's, but for compute_input and compute_output: nothing is counted there, so their count is 0.

    Telling decoding from encoding needs more readings of the clock for every request; together they are what success
    has beyond queue and compute_infer.
    """
    found = counts.get((model.name, model.version), ModelCounts())
    failed = sum(found.errors.values())
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": found.last_utc_ns // 1_000_000,
        "inference_count": found.rows,
        "execution_count": found.runs,
        "inference_stats": {
            "success": _duration(found.requests, found.latency.sum),
            "fail": _duration(failed, found.failed_s),
            "queue": _duration(found.requests, found.queue_s),
            "compute_input": _duration(0, 0.0),
            "compute_infer": _duration(found.requests, found.charged_s),
            "compute_output": _duration(0, 0.0),
            "cache_hit": _duration(0, 0.0),
            "cache_miss": _duration(0, 0.0),
        },
        "batch_stats": [
            {
                "batch_size": size,
                "compute_input": _duration(0, 0.0),
                "compute_infer": _duration(batch.runs, batch.compute_s),
                "compute_output": _duration(0, 0.0),
            }
            for size, batch in sorted(found.batches.items())
        ],
    }


def _duration(count: int, seconds: float) -> Value:
    return {"count": count, "ns": round(seconds * 1e9)}
