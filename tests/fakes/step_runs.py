"""Runs training graphs on the stock runtime the plain way, for tests that hold them against golden vectors."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime

from holdfast.autodiff.build import TrainingGraphs

PROBE_RATE = np.float32(2**40)  # so large that p - p.new holds every digit of the gradient
Arrays = dict[str, np.ndarray]


def session(graph: bytes, weights: bytes, *, optimize: bool = True) -> onnxruntime.InferenceSession:
    """One thread; `optimize=False` runs the graph as it is written."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_external_initializers_from_files_in_memory(["weights.bin"], [weights], [len(weights)])
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def trainable_of(graphs: TrainingGraphs, weights: bytes) -> Arrays:
    """The trainable parameters by name."""
    tensors = graphs.layout.unpack(np.frombuffer(weights, "<f4"))
    return {entry.name: tensors[entry.name] for entry in graphs.parameters}


def initial_state(graphs: TrainingGraphs, weights: bytes) -> Arrays:
    """Parameters as the weights have them, everything else that a step hands on as zeros."""
    tensors = graphs.layout.unpack(np.frombuffer(weights, "<f4"))
    state = {each.name: tensors.get(each.name, np.zeros(each.shape, np.float32)) for each in graphs.state}
    return {**trainable_of(graphs, weights), **state}


def run_step(run: onnxruntime.InferenceSession, state: Arrays, feeds: Mapping[str, np.ndarray]) -> tuple[Arrays, float]:
    """The state after one step, and the loss."""
    names = [*(f"{name}.new" for name in state), "loss"]
    *new, loss = run.run(names, {**state, **feeds})
    return dict(zip(state, new, strict=True)), float(loss)


def step_gradients(
    graphs: TrainingGraphs, weights: bytes, feeds: Mapping[str, np.ndarray], *, optimize: bool = True
) -> tuple[Arrays, Arrays, float]:
    """What one step of plain descent shows: gradients, everything's new value, and the loss."""
    state = initial_state(graphs, weights)
    run = session(graphs.train, weights, optimize=optimize)
    new, loss = run_step(run, state, {**feeds, "learning_rate": np.array(PROBE_RATE)})
    gradients = {name: (state[name].astype(np.float64) - new[name]) / PROBE_RATE for name in state}
    return gradients, new, loss
