"""The HTTP routes as a list: method, path, what they do, and the shapes of what goes in and out.

Rules: `routes.py` answers exactly these, `openapi.py` describes exactly these. A route with `not_offered` belongs to
the protocol and is refused with that reason. Source: Open Inference Protocol v2 REST and Triton's extensions to it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Route:
    """One route. `takes` and `gives` are names of schemas in `openapi.py`; empty = no body."""

    method: str
    template: str
    name: str
    summary: str
    takes: str = ""
    gives: str = ""
    not_offered: str = ""
    is_slow: bool = False


_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"
_SHM = "/v2/systemsharedmemory"
_CUDA = "CUDA shared memory (models run on the CPU)"
_TRACE = "a trace setting (trace headers are passed through, nothing is recorded)"
_LOG = "a log setting (the operator's own, at start)"
_GENERATE = "generate (models here answer once, in tensors; use infer)"


def _of_model(method: str, verb: str, name: str, summary: str, takes: str = "", gives: str = "") -> tuple[Route, ...]:
    """The same route for a model and for one of its versions."""
    return tuple(Route(method, base + verb, name, summary, takes, gives) for base in (_MODEL, _VERSION))


ROUTES: tuple[Route, ...] = (
    Route("GET", "/v2/health/live", "live", "Whether the process answers.", gives="Liveness"),
    Route("GET", "/v2/health/ready", "ready", "Whether requests are welcome; 400 if not.", gives="Readiness"),
    Route("GET", "/v2", "server", "Name, version and extensions of the server.", gives="ServerMetadata"),
    *_of_model("GET", "", "model", "Inputs and outputs of a model.", gives="ModelMetadata"),
    *_of_model("GET", "/ready", "model_ready", "Whether a model is served; 400 if not.", gives="ModelReadiness"),
    *_of_model("GET", "/config", "config", "The configuration of a model.", gives="ModelConfig"),
    *_of_model("GET", "/stats", "stats", "What a model answered and what it cost.", gives="ModelStatistics"),
    Route("GET", "/v2/models/stats", "stats", "What all models answered and what it cost.", gives="ModelStatistics"),
    *_of_model("POST", "/infer", "infer", "Run a model.", takes="InferRequest", gives="InferResponse"),
    Route("POST", "/v2/repository/index", "index", "All known models.", takes="IndexRequest", gives="RepositoryIndex"),
    Route(
        "POST",
        "/v2/repository/models/{model}/load",
        "load",
        "Load or reload a model from the repository; on the admin socket only.",
        takes="ControlRequest",
        is_slow=True,
    ),
    Route(
        "POST",
        "/v2/repository/models/{model}/unload",
        "unload",
        "Stop serving a model; on the admin socket only.",
        takes="ControlRequest",
        is_slow=True,
    ),
    Route("GET", _SHM + "/status", "region_status", "All shared memory regions; admin socket only.", gives="Regions"),
    Route(
        "GET",
        _SHM + "/region/{region}/status",
        "region_status",
        "One shared memory region; admin socket only.",
        gives="Regions",
    ),
    Route(
        "POST",
        _SHM + "/region/{region}/register",
        "region_register",
        "Register a shared memory region; admin socket only.",
        takes="RegionRequest",
    ),
    Route("POST", _SHM + "/region/{region}/unregister", "region_unregister", "Forget a region; admin socket only."),
    Route("POST", _SHM + "/unregister", "region_unregister", "Forget all regions; admin socket only."),
    Route("GET", "/metrics", "metrics", "Counters in Prometheus text format."),
    Route("GET", "/openapi.json", "openapi", "This document."),
    Route("GET", "/v2/cudasharedmemory/status", "cuda", "Not offered.", not_offered=_CUDA),
    Route("GET", "/v2/cudasharedmemory/region/{region}/status", "cuda", "Not offered.", not_offered=_CUDA),
    Route("POST", "/v2/cudasharedmemory/region/{region}/register", "cuda", "Not offered.", not_offered=_CUDA),
    Route("POST", "/v2/cudasharedmemory/region/{region}/unregister", "cuda", "Not offered.", not_offered=_CUDA),
    Route("POST", "/v2/cudasharedmemory/unregister", "cuda_unregister", "Forget all regions: there are none."),
    *(
        Route(method, path, "trace", "Not offered.", not_offered=_TRACE)
        for method in ("GET", "POST")
        for path in ("/v2/trace/setting", _MODEL + "/trace/setting")
    ),
    *(Route(method, "/v2/logging", "logging", "Not offered.", not_offered=_LOG) for method in ("GET", "POST")),
    *(
        Route("POST", base + verb, "generate", "Not offered.", not_offered=_GENERATE)
        for base in (_MODEL, _VERSION)
        for verb in ("/generate", "/generate_stream")
    ),
)
