"""A model repository on disk, in Triton's layout: <root>/<name>/<version>/model.onnx, and <name>/session.toml beside.

Rules: read only, nothing is ever written there; names and versions that could mean another place are not models; what a
link leads to must lie inside the root; how many models and versions are looked at is bounded.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import ModelError, SettingsError, UsageError
from holdfast.settings import load, setting

MODEL_FILE = "model.onnx"
SETTINGS_FILE = "session.toml"
LABELS_FILE = "labels.txt"
MAX_FILES = 64  # of one model, beside its versions, that are looked at for changes
MAX_LABELS = 65_536
MAX_LABELS_BYTES = 4_194_304  # 4 MiB: 64 bytes a label
MAX_LABEL_CHARS = 256
MODELS_FOLDER = "models"
MAX_MODELS = 4_096
MAX_VERSIONS = 1_024  # of one model
MAX_VERSION = 2**31 - 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_VERSION = re.compile(r"[1-9][0-9]{0,9}\Z")

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """The settings of one model, in its session.toml."""

    threads: int = setting(1, "threads inside one run of the model", minimum=1, maximum=1024)
    spinning: bool = setting(False, "let idle threads spin: 6 to 17 times the CPU, rarely faster")
    version_policy: str = setting("latest", "which versions are served", choices=("latest", "all", "specific"))
    latest_versions: int = setting(
        1, "how many versions `latest` serves: the newest that can be loaded", minimum=1, maximum=MAX_VERSIONS
    )
    versions: tuple[int, ...] = setting((), "the versions that `specific` serves")
    labels: str = setting(
        LABELS_FILE, "file beside this one with the names of the classes, one a line, for classification"
    )
    trial_memory_mib: int = setting(2048, "memory the model may take at its first load", minimum=1)
    trial_timeout_s: float = setting(60.0, "time its first load may take", minimum=0.1, maximum=3600.0)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """One model of a repository as it lies on the disk: its versions, smallest first."""

    name: str
    path: Path
    versions: tuple[int, ...]

    def model_file(self, version: int) -> Path:
        return self.path / str(version) / MODEL_FILE


def root_of(folder: Path) -> Path:
    """The folder that holds the models: `folder`, or `folder`/models if that is where they are.

    Raises:
        UsageError: it is not a folder.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder; expected one with NAME/VERSION/{MODEL_FILE} in it")
    inside = folder / MODELS_FOLDER
    return inside if inside.is_dir() and not _versions(inside) else folder


def scan(root: Path) -> dict[str, ModelFolder]:
    """The models that lie under a root, by name. Folders without a version are models without versions.

    Raises:
        ModelError: the root cannot be read, or holds too many models.
    """
    try:
        entries = sorted(entry.name for entry in os.scandir(root) if _NAME.match(entry.name) and entry.is_dir())
    except OSError as error:
        raise ModelError(f"model repository {root} cannot be read: {error.strerror}") from error
    if len(entries) > MAX_MODELS:
        raise ModelError(f"model repository {root} holds {len(entries)} folders; at most {MAX_MODELS} are looked at")
    return {name: ModelFolder(name, root / name, _versions(root / name)) for name in entries}


def settings_of(folder: ModelFolder) -> ModelSettings:
    """The settings of a model: its session.toml, or the defaults.

    Raises:
        SettingsError: the file is wrong.
    """
    path = folder.path / SETTINGS_FILE
    settings = load(ModelSettings, path=path if path.exists() else None, environment={})
    for version in settings.versions:
        if not isinstance(version, int) or not 0 < version <= MAX_VERSION:
            raise SettingsError(f"setting 'versions' in {path} must be whole numbers from 1 to {MAX_VERSION}")
    return settings


def wanted(folder: ModelFolder, settings: ModelSettings) -> tuple[tuple[int, ...], int]:
    """The versions to try, in this order, and how many of them are enough.

    `latest` goes back to older ones while newer ones cannot be loaded; the others want all, also those not there.
    """
    if settings.version_policy == "latest":
        return folder.versions[::-1], settings.latest_versions
    numbers = folder.versions if settings.version_policy == "all" else tuple(sorted(set(settings.versions)))
    return numbers, len(numbers)


def checked_file(root: Path, folder: ModelFolder, version: int) -> Path:
    """The model file of a version, with all links followed.

    Raises:
        ModelError: it is not there, or a link leads out of the repository.
    """
    path = folder.model_file(version)
    try:
        real, top = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise ModelError(f"there is no {version}/{MODEL_FILE} in the model's folder") from error
    if not real.is_relative_to(top):
        raise ModelError(f"{version}/{MODEL_FILE} is a link that leads out of the repository")
    if not real.is_file():
        raise ModelError(f"{version}/{MODEL_FILE} is not a file")
    return real


def labels_of(root: Path, folder: ModelFolder, settings: ModelSettings) -> tuple[str, ...]:
    """The labels of a model's classes; none if it has no labels.txt, and its settings name no other file.

    Raises:
        ModelError: the file is not there, lies outside the model's folder, or holds something else.
    """
    path = folder.path / settings.labels
    if settings.labels == LABELS_FILE and not path.exists():
        return ()
    try:
        real, top = path.resolve(strict=True), root.resolve(strict=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"labels file {settings.labels!r} is not in the model's folder") from error
    if Path(settings.labels).name != settings.labels or not real.is_relative_to(top):
        raise ModelError(f"labels file {settings.labels!r} is not in the model's folder")
    return read_labels(real)


def read_labels(path: Path) -> tuple[str, ...]:
    """The lines of a labels file, the first for class 0; an empty line is a class without a name.

    Raises:
        ModelError: it cannot be read, is too large, or a line is no name.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_LABELS_BYTES + 1)
        text = data.decode("utf-8")
    except OSError as error:
        raise ModelError(f"labels file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"labels file {path.name} is not UTF-8 at byte {error.start}") from error
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    if len(data) > MAX_LABELS_BYTES or len(lines) > MAX_LABELS:
        raise ModelError(f"labels file {path.name} holds more than {MAX_LABELS} labels or {MAX_LABELS_BYTES} bytes")
    for number, line in enumerate(lines, 1):
        if len(line) > MAX_LABEL_CHARS or not line.isprintable():
            raise ModelError(f"line {number} of {path.name}: expected at most {MAX_LABEL_CHARS} printable characters")
    return tuple(lines)


def fingerprint(folder: ModelFolder) -> Fingerprint:
    """What changes when somebody puts other files in place: name, size, time and identity of each."""
    found = []
    for path in (*_files_of(folder.path), *(folder.model_file(version) for version in folder.versions)):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_size, status.st_mtime_ns, status.st_ino))
    return tuple(found)


def _files_of(path: Path) -> list[Path]:
    """The files directly in a model's folder: its settings, its labels."""
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    except OSError:
        return []
    return [path / name for name in names[:MAX_FILES]]


def _versions(path: Path) -> tuple[int, ...]:
    try:
        names = [entry.name for entry in os.scandir(path) if _VERSION.match(entry.name) and entry.is_dir()]
    except OSError:
        return ()
    return tuple(sorted(int(name) for name in names if int(name) <= MAX_VERSION))[-MAX_VERSIONS:]
