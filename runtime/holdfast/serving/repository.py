"""The models of a folder, served: loaded, reloaded and unloaded while requests go on.

Rules: a version that cannot be loaded is UNAVAILABLE with its reason and takes nothing else down; where it was served
before, what was loaded then goes on; files are first loaded in a disposable child process. A change of versions is one
assignment in the pool, so that no request fails. Never on a serving loop's thread: everything here waits. At the start
as many trials run at a time as there are cores; later one, for the sake of those who are served meanwhile.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.errors import HoldfastError, ModelError, UnknownModelError
from holdfast.inference.background import in_background
from holdfast.inference.memory import give_back
from holdfast.inference.pool import MAX_TOLD_CHARS, ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSession, ModelSource, SessionOptions
from holdfast.inference.trial import run_trial
from holdfast.serving.protocols import VersionState
from holdfast.serving.repository_folder import (
    Fingerprint,
    ModelFolder,
    ModelSettings,
    checked_file,
    fingerprint,
    labels_of,
    scan,
    settings_of,
    wanted,
)

if TYPE_CHECKING:
    from holdfast.inference.graph_cache import GraphCache

logger = logging.getLogger(__name__)

READY = "READY"
LOADING = "LOADING"
UNAVAILABLE = "UNAVAILABLE"
UNLOADED = "unloaded"
MAX_REASON_CHARS = 500
MAX_AT_ONCE = 4  # trials: each is a process of 60 MB before it has a model

Prepare = Callable[[ModelSource, ModelSettings], ModelSession]

_preparing = threading.Lock()  # of this process: how long a model's runs take is measured with no other beside it


def prepare_safely(
    source: ModelSource, settings: ModelSettings, cache: GraphCache | None = None, *, shared_threads: bool = False
) -> ModelSession:
    """Try a model in a child process, then load it here, from its optimised graph if a cache has one.

    Args:
        shared_threads: it uses the process's pool, whatever its own settings say about threads.
    Raises:
        ModelError: it failed its trial, or cannot be served.
    """
    options = SessionOptions(settings.threads, spinning=settings.spinning, shared_threads=shared_threads)
    memory_bytes = settings.trial_memory_mib * 1024**2
    run_trial(source, memory_bytes=memory_bytes, timeout_s=settings.trial_timeout_s, options=options)
    with _preparing:
        return prepare_session(source, options, cache=cache)


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A version that is served: what it was made from, so that the same bytes are not loaded twice."""

    digest: str
    settings: ModelSettings
    labels: tuple[str, ...]
    session: ModelSession


class FolderRepository:
    """A ModelRepository over a folder. Thread-safe; but for `load_all`, one model is loaded at a time.

    Args:
        prepare: makes a session of a model's bytes; called from several threads at a time.
        at_once: how many models `load_all` works on at a time; None = one for each core, up to MAX_AT_ONCE.
    """

    def __init__(
        self, root: Path, pool: ModelPool, prepare: Prepare = prepare_safely, *, at_once: int | None = None
    ) -> None:
        self._root = root
        self._pool = pool
        self._prepare = prepare
        self._at_once = at_once or min(MAX_AT_ONCE, len(os.sched_getaffinity(0)))
        self._turn = threading.Lock()
        self._states: dict[str, dict[int, VersionState]] = {}
        self._loaded: dict[str, dict[int, _Loaded]] = {}
        self._seen: dict[str, Fingerprint] = {}

    def index(self) -> list[VersionState]:
        """Every version that was asked for or found, by name and version."""
        states = dict(self._states)
        return [versions[number] for _, versions in sorted(states.items()) for number in sorted(versions)]

    def load_all(self) -> None:
        """Load every model of the folder; those that cannot be are in the index with their reason.

        Raises:
            ModelError: the folder itself cannot be read.
        """
        with self._turn:
            folders = scan(self._root)
            with ThreadPoolExecutor(self._at_once, "load") as crew:
                list(crew.map(partial(_try, self._load), folders.values()))  # none touches what is another model's

    def poll(self) -> None:
        """Load what is new or has changed since it was loaded, and unload what is gone. What was unloaded stays so.

        Raises:
            ModelError: the folder itself cannot be read.
        """
        found = scan(self._root)
        for name, folder in found.items():
            if self._seen.get(name) != fingerprint(folder):
                _try(lambda found: self.load(found.name), folder)
        for name in set(self._loaded) - set(found):
            self.unload(name)
            self._pool.remove(name)
            del self._states[name], self._seen[name]

    def load(self, name: str) -> None:
        """Load or reload a model.

        Raises:
            UnknownModelError: there is no such folder.
            ModelError: none of its versions can be served, or one that was served before goes on as it was.
        """
        with self._turn:
            folder = scan(self._root).get(name)
            if folder is None:
                raise UnknownModelError(f"failed to load '{name[:MAX_TOLD_CHARS]}', no such model in the repository")
            self._load(folder)

    def unload(self, name: str) -> None:
        """Stop serving all versions of a model and give its memory back.

        Raises:
            UnknownModelError: it is not served.
        """
        with self._turn:
            versions = self._loaded.pop(name, None)
            if versions is None:
                raise UnknownModelError(f"failed to unload '{name[:MAX_TOLD_CHARS]}', it is not loaded")
            self._pool.remove(name, [str(number) for number in versions])
            self._states[name] = {n: VersionState(name, str(n), UNAVAILABLE, UNLOADED) for n in versions}
            versions.clear()
            logger.info("model unloaded", extra={"model": name})
            in_background(give_back)

    def _load(self, folder: ModelFolder) -> None:
        name = folder.name
        self._seen[name] = fingerprint(folder)
        before = self._loaded.get(name, {})
        try:
            settings = settings_of(folder)
        except HoldfastError as error:
            if not before:
                self._states[name] = {n: _unavailable(name, n, error) for n in folder.versions or (1,)}
                self._pool.remove(name, [str(number) for number in self._states[name]])
            raise ModelError(f"model '{name}': {_printable(error)}") from error
        states, loaded = self._load_versions(folder, settings, before)
        states |= {n: VersionState(name, str(n), UNAVAILABLE, UNLOADED) for n in before if n not in states}
        self._states[name] = states
        unready = [str(number) for number in states if number not in loaded]
        self._pool.put(name, {str(number): loaded[number].session for number in sorted(loaded)}, unready)
        self._loaded[name] = loaded
        kept = [number for number in loaded if loaded[number] is before.get(number)]
        if len(kept) < len(before):
            before.clear()  # the last hold on sessions that serve no more
            in_background(give_back)
        if not loaded:
            del self._loaded[name]
            raise ModelError(f"model '{name}': {_reasons(states) or 'no version in its folder'}")
        logger.info("model loaded", extra={"model": name, "versions": sorted(loaded)})
        if any(states[number].reason for number in kept):
            raise ModelError(f"model '{name}' is not reloaded: {_reasons(states)}")

    def _load_versions(
        self, folder: ModelFolder, settings: ModelSettings, before: Mapping[int, _Loaded]
    ) -> tuple[dict[int, VersionState], dict[int, _Loaded]]:
        """As many of the wanted versions as can be loaded, the others with their reason."""
        states: dict[int, VersionState] = {}
        loaded: dict[int, _Loaded] = {}
        numbers, enough = wanted(folder, settings)
        for number in numbers:
            if len(loaded) == enough:
                break
            self._states[folder.name] = {
                **self._states.get(folder.name, {}),
                number: VersionState(folder.name, str(number), LOADING),
            }
            try:
                loaded[number] = self._load_version(folder, number, settings, before.get(number))
                states[number] = VersionState(folder.name, str(number), READY)
            except HoldfastError as error:
                states[number] = _unavailable(folder.name, number, error)
                if number in before:
                    loaded[number] = before[number]
                    reason = f"what was loaded before goes on: {states[number].reason}"
                    states[number] = VersionState(folder.name, str(number), READY, reason)
        return states, loaded

    def _load_version(
        self, folder: ModelFolder, number: int, settings: ModelSettings, before: _Loaded | None
    ) -> _Loaded:
        source = in_background(partial(_read, checked_file(self._root, folder, number)))
        labels = labels_of(self._root, folder, settings)
        if before is not None and (before.digest, before.settings) == (source.digest, settings):
            if before.labels == labels:
                return before
            return replace(before, labels=labels, session=before.session.labelled(labels))
        session = self._prepare(source, settings)
        return _Loaded(source.digest, settings, labels, session.labelled(labels) if labels else session)


def _read(path: Path) -> ModelSource:
    source = ModelSource.from_file(path)
    _ = source.digest  # made here, once
    return source


def _try(load: Callable[[ModelFolder], None], folder: ModelFolder) -> None:
    try:
        load(folder)
    except HoldfastError as error:
        logger.warning("model not loaded", extra={"model": folder.name, "reason": _printable(error)})


def _unavailable(name: str, number: int, error: HoldfastError) -> VersionState:
    return VersionState(name, str(number), UNAVAILABLE, _printable(error))


def _reasons(states: dict[int, VersionState]) -> str:
    texts = [f"version {number}: {state.reason}" for number, state in sorted(states.items()) if state.reason]
    return "; ".join(texts)[:MAX_REASON_CHARS]


def _printable(error: BaseException) -> str:
    """The error's words without what could forge lines in a log: they may quote a model file."""
    return "".join(char if char.isprintable() else " " for char in str(error))[:MAX_REASON_CHARS]
