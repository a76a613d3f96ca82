"""What the control calls of the protocol answer, as plain JSON-ready values: one source for gRPC and HTTP.

Rules: every call asks `authorisation.py` first; field names are the protocol's, so that a value is either dumped as
JSON or parsed into the message of the same fields; only what is true is advertised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from holdfast import __version__
from holdfast.clock import Clock
from holdfast.errors import ModelError, RequestError, UnsupportedError
from holdfast.inference.pool import ModelPool, is_version_number
from holdfast.serving import metrics
from holdfast.serving.authorisation import AccessRules, Action, Caller, check_call, check_overrides
from holdfast.serving.descriptions import Value, config_outputs, config_tensors, model_statistics, tensors
from holdfast.serving.protocols import ModelRepository
from holdfast.serving.service import InferenceService
from holdfast.serving.shared_memory import SharedMemory
from holdfast.serving.statistics import Statistics

SERVER_NAME = "holdfast"
PLATFORM = "onnxruntime_onnx"
BACKEND = "onnxruntime"
MODEL_FILE = "model.onnx"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "parameters",
    "statistics",
)  # of every server; `extensions` adds what this one was told to offer
READY = "READY"
UNLOAD_DEPENDENTS = "unload_dependents"  # a parameter of unload: ensembles are not offered, so nothing depends


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server has to offer. `repository` and `regions` are None where it has none."""

    pool: ModelPool
    service: InferenceService
    statistics: Statistics
    clock: Clock
    rules: AccessRules
    repository: ModelRepository | None = None
    regions: SharedMemory | None = None


class Control:
    """Answers the control calls of a server. Thread-safe. `load` waits; the others don't."""

    def __init__(self, offer: Offer) -> None:
        self._offer = offer

    @property
    def is_guarded(self) -> bool:
        """Whether callers must show who they are; a front need not ask for every request otherwise."""
        return not self._offer.rules.are_open

    def check(self, caller: Caller, action: Action) -> None:
        """Whether the caller may do this.

        Raises:
            AccessError: it may not.
        """
        check_call(self._offer.rules, caller, action)

    def server_metadata(self) -> Value:
        """Name, version and extensions."""
        extensions = list(EXTENSIONS)
        if self._offer.repository is not None:
            extensions.append("model_repository")
        if self._offer.regions is not None:
            extensions.append("system_shared_memory")
        return {"name": SERVER_NAME, "version": __version__, "extensions": sorted(extensions)}

    def model_metadata(self, name: str, version: str) -> Value:
        """Versions, inputs and outputs.

        Raises:
            UnknownModelError: it is not served.
        """
        model = self._offer.pool.get(name, version)
        versions = [version] if version else list(self._offer.pool.versions(name))
        return {
            "name": model.name,
            "versions": versions,
            "platform": PLATFORM,
            "inputs": tensors(model.session.inputs),
            "outputs": tensors(model.session.outputs),
        }

    def model_config(self, name: str, version: str) -> Value:
        """The configuration as Triton's clients read it. Shapes are whole: `max_batch_size` is 0.

        Its parameters say whether requests of several clients may share a run of this model, and why.

        Raises:
            UnknownModelError: it is not served.
        """
        model = self._offer.pool.get(name, version)
        mixing = model.session.traits.mixing
        served = [int(text) for text in self._offer.pool.versions(name) if is_version_number(text)]
        return {
            "name": model.name,
            "platform": PLATFORM,
            "backend": BACKEND,
            "version_policy": {"specific": {"versions": served}},
            "max_batch_size": 0,
            "input": config_tensors(model.session.inputs),
            "output": config_outputs(model.session),
            "instance_group": [{"name": f"{model.name}_0", "kind": "KIND_CPU", "count": 1}],
            "default_model_filename": MODEL_FILE,
            "model_transaction_policy": {"decoupled": False},
            "parameters": {
                "row_mixing": {"string_value": "allowed" if mixing.is_allowed else "refused"},
                "row_mixing_reason": {"string_value": mixing.reason},
                "row_mixing_batches": {"string_value": " ".join(map(str, mixing.buckets))},
            },
        }

    def statistics(self, name: str, version: str) -> Value:
        """Counters of one version, of all versions of a model, or of all models (empty name).

        Raises:
            UnknownModelError: it is not served.
        """
        counts = self._offer.statistics.counts()
        if name:
            self._offer.pool.get(name, version)
        wanted = [
            model for model in self._offer.pool.models() if name in ("", model.name) and version in ("", model.version)
        ]
        return {"model_stats": [model_statistics(model, counts) for model in wanted]}

    def metrics(self) -> str:
        """The metrics page."""
        ready = [(model.name, model.version) for model in self._offer.pool.models()]
        counts = self._offer.statistics.counts()
        service = self._offer.service
        state = metrics.State(service.is_ready, service.waiting(), service.refusals.counts())
        return metrics.render(counts, ready, __version__, state)

    def repository_index(self, *, ready_only: bool) -> list[Value]:
        """Every model version that is known, with its state and the reason if it is not served."""
        if self._offer.repository is None:
            return [{"name": m.name, "version": m.version, "state": READY} for m in self._offer.pool.models()]
        index = self._offer.repository.index()
        return [
            {"name": entry.name, "version": entry.version, "state": entry.state, "reason": entry.reason}
            for entry in index
            if entry.state == READY or not ready_only
        ]

    def load(self, name: str, parameters: Iterable[str], caller: Caller) -> None:
        """Load or reload a model from the repository. Waits until it is served or refused.

        Raises:
            AccessError: not on this socket, not on this server, or with the model's bytes or settings in the call.
            ModelError: no version of it can be served.
            UnknownModelError: there is no such model.
        """
        check_overrides(parameters)
        self.check(caller, Action.CONTROL_MODELS)
        try:
            self._repository().load(name)
        except ModelError as error:
            raise ModelError(
                f"failed to load '{name}', {error}"
            ) from error  # Triton's words: its clients look for them

    def unload(self, name: str, parameters: Iterable[str], caller: Caller) -> None:
        """Stop serving all versions of a model.

        Raises:
            AccessError: not on this socket, or not on this server.
            UnknownModelError: there is no such model.
        """
        check_overrides(key for key in parameters if key != UNLOAD_DEPENDENTS)
        self.check(caller, Action.CONTROL_MODELS)
        self._repository().unload(name)

    def regions(self) -> SharedMemory | None:
        """The shared memory regions, if this server offers them."""
        return self._offer.regions

    def region_status(self, name: str, caller: Caller) -> dict[str, Value]:
        """Registered regions by name.

        Raises:
            AccessError: not on this socket, or not on this server.
            UnknownRegionError: there is none of this name.
        """
        return {
            key: {"name": key, "key": region.key, "offset": region.offset, "byte_size": region.size_bytes}
            for key, region in self._own_regions(caller).status(name).items()
        }

    def register_region(self, name: str, fields: Mapping[str, object], caller: Caller) -> None:
        """Register a region from `key`, `offset` and `byte_size`.

        Raises:
            AccessError: not on this socket, or not on this server.
            RequestError: the fields are wrong, or there is no such object.
        """
        regions = self._own_regions(caller)
        key = fields.get("key")
        if not isinstance(key, str):
            raise RequestError("expected a string as key")
        regions.register(name, key, _size(fields, "offset"), _size(fields, "byte_size"))

    def unregister_region(self, name: str, caller: Caller) -> None:
        """Forget one region, or all of them (empty name).

        Raises:
            AccessError: not on this socket, or not on this server.
        """
        self._own_regions(caller).unregister(name)

    def _own_regions(self, caller: Caller) -> SharedMemory:
        self.check(caller, Action.REGISTER_REGION)
        if self._offer.regions is None:
            raise UnsupportedError("shared memory is not offered by this server")
        return self._offer.regions

    def _repository(self) -> ModelRepository:
        if self._offer.repository is None:
            raise UnsupportedError("this server has no model repository")
        return self._offer.repository


def _size(fields: Mapping[str, object], key: str) -> int:
    value = fields.get(key, 0)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise RequestError(f"expected a whole number from 0 to {2**63 - 1} as {key}")
    return value
