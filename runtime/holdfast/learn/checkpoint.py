"""Where a training stood at the end of an epoch, on disk: a worker that is killed loses one epoch at most.

Rules: one file, replaced durably after every epoch, never larger than its bound. It names the training that it belongs
to (graph, weights, samples and settings, by hash); for another one, or damaged, it counts as absent. The shuffle is
replayed from the seed, so a resumed training ends in the same bits as one that was never interrupted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from holdfast.errors import FormatError, StateError
from holdfast.learn.data import Array, LocalDataset
from holdfast.learn.training import TrainSettings
from holdfast.trust.durable import write_atomic
from holdfast.update.layout import Floats
from holdfast.wire.container import ContainerLimits, read_container, write_container

logger = logging.getLogger(__name__)

KIND = "training-checkpoint"
MAX_CHECKPOINT_BYTES = 62_914_560  # 60 MiB: a worker may not write files above 64 MiB; 15 million values with SGD


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `epochs` whole epochs, and what was measured on the way."""

    epochs: int
    steps: int
    state: Mapping[str, Array]
    loss_before: float
    gradient_norm: float
    cpu_seconds: float


def training_identity(graph: bytes, weights: Floats, dataset: LocalDataset, settings: TrainSettings) -> str:
    """SHA-256 over everything that decides the bits of a training; its deadline doesn't."""
    whole = hashlib.sha256()
    asked = repr(dataclasses.replace(settings, deadline_monotonic_s=None))
    parts = [graph, weights.tobytes(), np.ascontiguousarray(dataset.labels).tobytes(), asked.encode()]
    for name, array in sorted(dataset.inputs.items()):
        parts += [f"{name} {array.dtype} {array.shape}".encode(), np.ascontiguousarray(array).tobytes()]
    for part in parts:
        whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()


class CheckpointFile:
    """The one checkpoint at `path`."""

    def __init__(self, path: Path, max_bytes: int = MAX_CHECKPOINT_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def load(self, identity: str) -> Checkpoint | None:
        """The checkpoint of this training; None if there is none that can be used."""
        try:
            if self._path.stat().st_size > self._max_bytes + 65_536:
                raise FormatError("the checkpoint is larger than its bound")
            files = read_container(self._path.read_bytes(), KIND, limits=ContainerLimits(max_files=2))
            return _decode(files, identity)
        except FileNotFoundError:
            return None
        except (OSError, FormatError, KeyError, ValueError, TypeError) as error:
            logger.warning("a training checkpoint could not be read; training starts afresh: %s", type(error).__name__)
            return None

    def save(self, identity: str, checkpoint: Checkpoint) -> None:
        """Replace the file durably.

        Raises: StateError: the disk is full or not writable, or the state is larger than the bound. The file is then
        as it was.
        """
        # not ascontiguousarray: that would give a scalar, such as a count of steps, an axis
        arrays = {name: np.asarray(value, order="C") for name, value in checkpoint.state.items()}
        size = sum(array.nbytes for array in arrays.values())
        if size > self._max_bytes:
            raise StateError(f"the state of this training has {size} bytes, a checkpoint at most {self._max_bytes}")
        about = {
            "identity": identity,
            "epochs": checkpoint.epochs,
            "steps": checkpoint.steps,
            "loss_before": checkpoint.loss_before,
            "gradient_norm": checkpoint.gradient_norm,
            "cpu_seconds": checkpoint.cpu_seconds,
            "state": [[name, array.dtype.str, list(array.shape)] for name, array in arrays.items()],
        }
        blob = b"".join(array.tobytes() for array in arrays.values())
        write_atomic(self._path, write_container(KIND, {"about.json": json.dumps(about).encode(), "state.bin": blob}))

    def discard(self) -> None:
        """Remove the file, if it is there."""
        self._path.unlink(missing_ok=True)


def _decode(files: Mapping[str, bytes], identity: str) -> Checkpoint | None:
    about = json.loads(files["about.json"])
    if about["identity"] != identity:
        return None
    state: dict[str, Array] = {}
    offset = 0
    for name, kind, shape in about["state"]:
        count = int(np.prod(shape, dtype=np.int64))
        state[name] = np.frombuffer(files["state.bin"], dtype=kind, count=count, offset=offset).reshape(shape)
        offset += state[name].nbytes
    return Checkpoint(
        epochs=int(about["epochs"]),
        steps=int(about["steps"]),
        state=state,
        loss_before=float(about["loss_before"]),
        gradient_norm=float(about["gradient_norm"]),
        cpu_seconds=float(about["cpu_seconds"]),
    )
