"""The memory estimate of a step: how long values are held, and how near it is to processes that train."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.training_nets import NETS
from onnx import TensorProto, helper
from tests.fakes.models import he_mlp

from holdfast.author.step_memory import ACCURACY, FRAGMENTATION, NODE_BYTES, SESSION_BYTES, peak_bytes
from holdfast.autodiff.build import StepOptions, TrainingGraphs, build_graphs
from holdfast.autodiff.externalise import split_weights

ROOT = Path(__file__).parents[3]
BY_NAME = {net.name: net for net in NETS}
N = helper.make_node


def graph(*nodes: object, made: str = "y", wide: int = 100) -> bytes:
    """A graph from x[100] to an output of `wide` floats."""
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (100,))
    out = helper.make_tensor_value_info(made, TensorProto.FLOAT, (wide,))
    times = helper.make_tensor("times", TensorProto.INT64, (1,), [10])
    flat = helper.make_tensor("flat", TensorProto.INT64, (2,), [10, 100])
    model = helper.make_graph(list(nodes), "step", [given], [out], [times, flat])  # type: ignore[arg-type]
    return helper.make_model(model, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString()


def alive(graph_bytes: bytes, nodes: int) -> float:
    """What the estimate takes for made values, in floats."""
    return (peak_bytes(graph_bytes, 0) - SESSION_BYTES - nodes * NODE_BYTES - 400) / FRAGMENTATION / 4


def test_a_value_is_held_until_its_last_reader() -> None:
    """wide (1000) and its sine live at once; the narrow sums do not see both."""
    chain = [
        N("Tile", ["x", "times"], ["wide"]),
        N("Sin", ["wide"], ["sine"]),
        N("ReduceSum", ["sine"], ["sum"]),
        N("Tile", ["sum", "times"], ["y"]),
    ]
    late = [*chain[:3], N("Add", ["wide", "sum"], ["z"]), N("Cos", ["z"], ["y"])]

    assert alive(graph(*chain, wide=10), 4) == pytest.approx(2000, abs=2)
    assert alive(graph(*late, wide=1000), 5) == pytest.approx(2001, abs=2)


def test_what_writes_in_place_and_views_take_nothing_of_their_own() -> None:
    nodes = [
        N("Tile", ["x", "times"], ["wide"]),
        N("Reshape", ["wide", "flat"], ["table"]),
        N("Relu", ["table"], ["positive"]),
        N("Flatten", ["positive"], ["y"], axis=0),
    ]

    assert alive(graph(*nodes, wide=1000), 4) == pytest.approx(1000, abs=2)


def test_weights_and_nodes_count() -> None:
    assert peak_bytes(graph(N("Relu", ["x"], ["y"])), 7_000) == pytest.approx(
        SESSION_BYTES + NODE_BYTES + 7_000 + 400 + FRAGMENTATION * 400
    )


def feeds_of(graphs: TrainingGraphs, weights: bytes, words: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    tensors = graphs.layout.unpack(np.frombuffer(weights, "<f4"))
    feeds = {entry.name: tensors[entry.name] for entry in graphs.parameters}
    feeds |= {each.name: tensors.get(each.name, np.zeros(each.shape, np.float32)) for each in graphs.state}
    for data in graphs.data_inputs:
        drawn = rng.standard_normal(data.shape).astype(np.float32)
        feeds[data.name] = drawn if data.is_float else rng.integers(0, words, data.shape)
    return {
        **feeds,
        "labels": rng.integers(0, graphs.class_count, graphs.batch),
        "learning_rate": np.array(0.01, np.float32),
    }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", BY_NAME)
def test_estimate_is_near_what_a_process_that_trains_holds(tmp_path: Path, name: str, optimizer: str) -> None:
    net = BY_NAME[name]
    model = net.onnx()
    options = StepOptions(batch_norm=net.batch_norm)
    graphs = build_graphs(model, batch=32, trainable=net.trainable, optimizer=optimizer, options=options)
    weights = split_weights(model, layout=graphs.layout).weights
    (tmp_path / "train.onnx").write_bytes(graphs.train)
    (tmp_path / "warm.onnx").write_bytes(build_graphs(he_mlp([4, 8, 3]), batch=2).train)
    (tmp_path / "weights.bin").write_bytes(weights)
    np.savez(tmp_path / "feeds.npz", allow_pickle=False, **feeds_of(graphs, weights, net.words))
    estimate = peak_bytes(graphs.train, len(weights))

    run = subprocess.run(
        [sys.executable, "-m", "tests.fakes.step_process", str(tmp_path)],
        capture_output=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'runtime'}:{ROOT}"},
        timeout=120,
    )

    assert 1 / ACCURACY <= estimate / int(run.stdout) <= ACCURACY
