"""The predict function of every peer: the models of a folder in stock ONNX Runtime, one thread, nothing in between.

Imported by programs that run in environments without Holdfast: onnxruntime and numpy only.
"""

from __future__ import annotations

import socket
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime


class Models:
    """The models of a repository folder, `NAME/1/model.onnx`, each from `x` to `y`."""

    def __init__(self, folder: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._sessions = {
            path.parent.parent.name: onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
            for path in sorted(folder.glob("*/1/model.onnx"))
        }

    def names(self) -> list[str]:
        return list(self._sessions)

    def width(self, name: str) -> int:
        """Numbers in a row of the input."""
        return int(self._sessions[name].get_inputs()[0].shape[1])

    def predict(self, name: str, x: np.ndarray) -> np.ndarray:
        y: np.ndarray = self._sessions[name].run(["y"], {"x": x})[0]
        return y


def models_of_command_line() -> Models:
    """The folder is the first word after the program."""
    return Models(Path(sys.argv[1]))


def free_port() -> int:
    """For servers that cannot say which port they took. Another program may take it first; then the start fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say_when_open(*ports: int) -> None:
    """Say the addresses once all of them take connections; watches from a thread of its own."""

    def watch() -> None:
        for port in ports:
            while True:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
        say(" ".join(f"127.0.0.1:{port}" for port in ports))

    threading.Thread(target=watch, daemon=True).start()


def say(address: str) -> None:
    """Where this peer listens, for who started it."""
    print(address, flush=True)
