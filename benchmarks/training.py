"""One training step of a perceptron on the stock runtime, beside its forward run, and beside torch where that is there.

64-64-64-10, batch 10, float32, plain SGD, one thread everywhere; the model and sizes of the digits demonstration.
Beside torch, where that is installed: see `training_beside_torch.py`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from benchmarks import training_beside_torch
from benchmarks.harness import Figures, Options, Outcome, compare, timed
from tests.fakes.models import he_mlp

from holdfast.autodiff.build import build_graphs
from holdfast.autodiff.externalise import split_weights
from holdfast.learn.data import DataContract, InputContract, LocalDataset
from holdfast.learn.trainer import Trainer
from holdfast.learn.training import TrainSettings

SIZES, BATCH = (64, 64, 64, 10), 10
STEPS = 700  # per block: the 1,400 samples of the demonstration, five epochs
SAMPLES, EPOCHS = 1_400, 5


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
    return [*outcomes, *training_beside_torch.run(options)]


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
