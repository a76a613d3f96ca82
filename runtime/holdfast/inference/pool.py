"""The models being served: looked up by name and version, swapped without a gap, run in batches of requests.

Rules: a swap is one assignment; a request that has started finishes on the session it started with; an old session
goes when its last request ends. Requests share a run only where `row_mixing` proved that rows stay apart. Loading and
trying a model happen before, elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from holdfast.errors import HoldfastError, InferenceError, UnknownModelError, UnreadyModelError, VersionFormError
from holdfast.inference.batching import run_requests
from holdfast.inference.session import ModelSession, RunStop
from holdfast.inference.tensors import Array, TensorRequest, TensorResponse

MAX_TOLD_CHARS = 256  # of a client's own words in our answer


@dataclass(frozen=True, slots=True)
class ServedModel:
    """One version of a model."""

    name: str
    version: str
    session: ModelSession


class ModelPool:
    """Served models by name. Thread-safe; readers never wait for a swap."""

    def __init__(self) -> None:
        # by name, then by version; the version "" is the one that answers when none is asked for
        self._models: dict[str, dict[str, ServedModel]] = {}
        self._unready: dict[str, frozenset[str]] = {}  # versions by name, for the words of a refusal
        self._writing = threading.Lock()

    def swap(self, name: str, version: str, session: ModelSession) -> ServedModel | None:
        """Serve `session` as the only version of `name` from the next request on. Returns what answered before."""
        return self.put(name, {version: session})

    def put(self, name: str, sessions: Mapping[str, ModelSession], unready: Collection[str] = ()) -> ServedModel | None:
        """Serve these versions of `name` from the next request on, and no others. Returns what answered before.

        The greatest number among them answers when no version is asked for; without numbers, the last one.

        Args:
            unready: versions that are known and not served; who asks for one is told so.
        """
        with self._writing:
            known = self._models.get(name, {})
            served = {
                version: known[version]
                if version in known and known[version].session is session
                else ServedModel(name, version, session)
                for version, session in sessions.items()
            }
            models = {key: versions for key, versions in self._models.items() if key != name}
            if served:
                default = max(enumerate(served), key=lambda item: (_number(item[1]), item[0]))[1]
                models[name] = {**served, "": served[default]}
            self._models = models  # one assignment: no reader may find the name gone in between
            others = {key: versions for key, versions in self._unready.items() if key != name}
            self._unready = {**others, name: frozenset(unready)} if unready else others
        return known.get("")

    def remove(self, name: str, unready: Collection[str] = ()) -> ServedModel | None:
        """Stop serving all versions of `name`, of which some may stay known. Returns what answered."""
        return self.put(name, {}, unready)

    def get(self, name: str, version: str = "") -> ServedModel:
        """The model served under `name`.

        Raises:
            UnknownModelError: no such name, or another version of it. The text is the one Triton's clients know.
        """
        model = self.find(name, version)
        if model is None:
            raise self._refusal(name, version)
        return model

    def _refusal(self, name: str, version: str) -> UnknownModelError:
        """Why nothing is served there, in Triton's words (ModelLifeCycle::GetModel, GetModelVersionFromString)."""
        models, unready = self._models, self._unready.get(name, frozenset())
        number = version[:MAX_TOLD_CHARS]
        # bundles have versions of any form: where some are served, a version is as unknown as any other
        has_others = any(v and not is_version_number(v) for served in models.values() for v in served)
        if version and not is_version_number(version) and not has_others:
            if version[0] == "-" and is_version_number(version[1:]):
                text = f"invalid model version specified '{number}' "
            else:
                text = f"failed to get model version from specified version string '{number}' (details: stol)"
            return VersionFormError(f"{text}, version should be an integral value > 0")
        told = f"Request for unknown model: '{name[:MAX_TOLD_CHARS]}'"
        if version in unready:
            return UnreadyModelError(f"{told} version {number} is not at ready state")
        if not version and unready:
            return UnknownModelError(f"{told} has no available versions")
        is_known = version and (name in models or unready)
        return UnknownModelError(f"{told} version {number} is not found" if is_known else f"{told} is not found")

    def find(self, name: str, version: str = "") -> ServedModel | None:
        """As `get`, with None for a model that is not served."""
        versions = self._models.get(name)
        return None if versions is None else versions.get(version)

    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self._models))

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions served under `name`, smallest number first."""
        return tuple(sorted((version for version in self._models.get(name, {}) if version), key=_order))

    def models(self) -> tuple[ServedModel, ...]:
        """All versions of all models, by name and version."""
        models = self._models
        return tuple(
            models[name][version]
            for name in sorted(models)
            for version in sorted(filter(None, models[name]), key=_order)
        )

    def predict_batch(self, requests: Sequence[TensorRequest]) -> list[TensorResponse | HoldfastError]:
        """Answer requests that arrived together, in their order. One request's error never touches another's answer."""
        answers: list[TensorResponse | HoldfastError] = [_UNANSWERED] * len(requests)
        places_of: dict[int, tuple[ServedModel, list[int]]] = {}
        for place, request in enumerate(requests):
            try:
                model = self.get(request.model, request.version)
            except UnknownModelError as error:
                answers[place] = error
                continue
            places_of.setdefault(id(model), (model, []))[1].append(place)
        for model, places in places_of.values():
            for place, answer in zip(places, predict(model, [requests[place] for place in places]), strict=True):
                answers[place] = answer
        return answers


def predict(
    model: ServedModel, requests: Sequence[TensorRequest], stop: RunStop | None = None
) -> list[TensorResponse | HoldfastError]:
    """Answer requests by one model, in their order, whatever model they name."""
    return responses(model, requests, run_requests(model.session, requests, stop))


def responses(
    model: ServedModel, requests: Sequence[TensorRequest], answers: Sequence[dict[str, Array] | HoldfastError]
) -> list[TensorResponse | HoldfastError]:
    """Outputs as responses, each under the id of its request."""
    name, version, labels = model.name, model.version, model.session.labels
    return [
        answer
        if isinstance(answer, HoldfastError)
        else TensorResponse(name, version, request.request_id, answer, labels)
        for request, answer in zip(requests, answers, strict=True)
    ]


def is_version_number(version: str) -> bool:
    """Whether it is one of Triton's versions: 0 to 2^63 - 1, in digits."""
    return version.isascii() and version.isdigit() and len(version) <= 19 and int(version) < 2**63


def _number(version: str) -> int:
    return int(version) if is_version_number(version) else -1


def _order(version: str) -> tuple[int, str]:
    return _number(version), version


_UNANSWERED = InferenceError("the request was not answered")
