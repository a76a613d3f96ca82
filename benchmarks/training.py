"""One training step of a perceptron on the stock runtime, beside its forward run, and beside torch where that is there.

64-64-64-10, batch 10, float32, plain SGD, one thread everywhere; the model and sizes of the digits demonstration.
Beside torch, where that is installed, the nets of McMahan et al. 2017: 784-200-200-10 and their CNN, at batches of 10
and 32, with the peak memory of a whole process each.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from benchmarks.harness import Figures, NotRun, Options, Outcome, compare, timed
from benchmarks.training_nets import NETS, Net
from benchmarks.training_steps import our_step, torch_step
from tests.fakes.models import he_mlp

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainSettings

SIZES, BATCH = (64, 64, 64, 10), 10
STEPS = 700  # per block: the 1,400 samples of the demonstration, five epochs
SAMPLES, EPOCHS = 1_400, 5
BATCHES = (10, 32)
MEMORY_STEPS = 100  # the peak is reached in the first few


def run(options: Options) -> list[Outcome]:
    model = he_mlp(list(SIZES))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((SAMPLES, SIZES[0])).astype(np.float32)
    y = np.argmax(x[:, : SIZES[-1]], axis=1)
    step, forward, count = _step(model, x[:BATCH], y[:BATCH]), _forward(model, x[:BATCH]), options.count(STEPS)

    def run_forward() -> Figures:
        return timed(forward, count)

    def run_step() -> Figures:
        return timed(step, count)

    a, b = ("forward run, batch 10", run_forward), ("training step, batch 10", run_step)
    outcomes = compare("training/step", a, b, options.rounds)
    a, whole = ("training step, batch 10", run_step), ("whole local training, per step", _trainer(model, x, y))
    outcomes += compare("training/local", a, whole, options.rounds)
    if importlib.util.find_spec("torch") is None:
        return [*outcomes, NotRun("training/torch", "torch is not installed; nothing of Holdfast needs it")]
    for net in NETS:
        for batch in BATCHES:
            outcomes += _beside_torch(net, batch, options)
    return outcomes


def _beside_torch(net: Net, batch: int, options: Options) -> list[Outcome]:
    """Time of a step in this process, and the peak memory of fresh ones that do a hundred."""
    name, count = f"training/{net.name}-{batch}", options.count(net.steps)
    model = net.onnx()
    graph = build_graphs(model, batch=batch).train
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}
    ours, theirs = our_step(graph, weights, net.shape, batch), torch_step(net.name, net.shape, batch)
    a = ("torch eager step", lambda: timed(theirs, count))
    outcomes = compare(name, a, ("our step", lambda: timed(ours, count)), options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        path, arrays = Path(folder) / "train.onnx", Path(folder) / "weights.npz"
        path.write_bytes(graph)
        np.savez(arrays, **weights)
        sizes = ["x".join(map(str, net.shape)), str(batch), str(MEMORY_STEPS)]
        a = ("torch, a whole process", lambda: _peak("torch", net.name, "-", *sizes))
        b = ("ours, a whole process", lambda: _peak("ours", str(path), str(arrays), *sizes))
        return [*outcomes, *compare(name, a, b, 3)]


def _peak(*arguments: str) -> Figures:
    command = [sys.executable, "-m", "benchmarks.training_steps", *arguments]
    return {"peak_mib": float(subprocess.run(command, capture_output=True, check=True, timeout=300).stdout)}


def _session(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _forward(model: bytes, x: np.ndarray) -> Callable[[], object]:
    session = _session(model)
    return lambda: session.run(None, {"input": x})


def _step(model: bytes, x: np.ndarray, y: np.ndarray) -> Callable[[], object]:
    """A step that feeds its new weights back, as training does."""
    graphs = build_graphs(model, batch=BATCH)
    session = _session(graphs.train)
    names = [entry.name for entry in graphs.layout.trainable]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load_from_string(model).graph.initializer}
    fixed = {"input": x, "labels": y.astype(np.int64), "learning_rate": np.array(0.1, np.float32)}

    def step() -> None:
        new = session.run([f"{name}.new" for name in names], {**weights, **fixed})
        weights.update(zip(names, new, strict=True))

    return step


def _trainer(model: bytes, x: np.ndarray, y: np.ndarray) -> Callable[[], Figures]:
    """Whole local trainings: shuffling, batches, losses before and after; the time per step of them."""
    graphs = build_graphs(model, batch=BATCH)
    trainer = Trainer(graphs.train, graphs.evaluate, graphs.layout)
    contract = DataContract((InputContract("input", "float32", (SIZES[0],)),), class_count=SIZES[-1])
    dataset = LocalDataset.from_arrays({"input": x, "y": y}, contract)
    weights = np.frombuffer(split_weights(model, layout=graphs.layout).weights, "<f4")
    settings = TrainSettings(epochs=EPOCHS, batch=BATCH, learning_rate=0.1, seed=0)
    steps = SAMPLES // BATCH * EPOCHS

    def block() -> Figures:
        figures = timed(lambda: trainer.train(weights, dataset, settings), 1)
        return {"p50_us": figures["p50_us"] / steps, "cpu_us": figures["cpu_us"] / steps}

    return block
