"""The models being served: looked up by name, swapped without a gap, run in batches of requests.

Rules: a swap is one assignment; a request that has started finishes on the session it started with; an old session
goes when its last request ends. Loading and trying a model happen before, elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.errors import HoldfastError, UnknownModelError
from holdfast.inference.session import ModelSession
from holdfast.inference.tensors import TensorRequest, TensorResponse


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One name's present version."""

    name: str
    version: str
    session: ModelSession


class ModelPool:
    """Served models by name. Thread-safe; readers never wait for a swap."""

    def __init__(self) -> None:
        self._models: dict[str, ServedModel] = {}
        self._writing = threading.Lock()

    def swap(self, name: str, version: str, session: ModelSession) -> ServedModel | None:
        """Serve `session` under `name` from the next request on. Returns what was served before."""
        with self._writing:
            before = self._models.get(name)
            self._models = {**self._models, name: ServedModel(name, version, session)}
        return before

    def remove(self, name: str) -> ServedModel | None:
        """Stop serving `name`. Returns what was served."""
        with self._writing:
            before = self._models.get(name)
            self._models = {key: model for key, model in self._models.items() if key != name}
        return before

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model served under `name`.

        Raises:
            UnknownModelError: no such name, or another version of it. The text is the one Triton's clients know.
        """
        model = self._models.get(name)
        if model is not None and version in ("", model.version):
            return model
        version_text = f" version {version}" if version and model is not None else ""
        raise UnknownModelError(f"Request for unknown model: '{name}'{version_text} is not found")

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._models))

    def predict_batch(self, requests: Sequence[TensorRequest]) -> list[TensorResponse | HoldfastError]:
        """Answer requests that arrived together, in their order. One request's error never touches another's answer."""
        return [self._predict(request) for request in requests]

    def _predict(self, request: TensorRequest) -> TensorResponse | HoldfastError:
        try:
            model = self.get(request.model, request.version)
            outputs = model.session.run(request.inputs, request.outputs)
        except HoldfastError as error:
            return error
        return TensorResponse(model.name, model.version, request.request_id, outputs)
