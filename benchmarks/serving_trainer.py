"""A federated round's training, over and over, behind the walls of its worker: `python -m benchmarks.serving_trainer`.

Says `training` when it begins. The net is 784-200-200-10, batch 10, one thread, the priority of the device's worker.
"""

from __future__ import annotations

from holdfast.learn.isolation import isolate

MEMORY_BYTES = 8 * 1024**3
SIZES, BATCH, SAMPLES = (784, 200, 200, 10), 10, 600


def main() -> None:
    isolate(memory_bytes=MEMORY_BYTES)  # before numpy: a user namespace needs one thread
    import numpy as np
    from tests.fakes.models import he_mlp

    from holdfast.autodiff.build import build_graphs
    from holdfast.autodiff.externalise import split_weights
    from holdfast.learn.data import DataContract, InputContract, LocalDataset
    from holdfast.learn.trainer import Trainer
    from holdfast.learn.training import TrainSettings

    model = he_mlp(list(SIZES))
    graphs = build_graphs(model, batch=BATCH)
    trainer = Trainer(graphs.train, graphs.evaluate, graphs.layout)
    contract = DataContract((InputContract("input", "float32", SIZES[:1]),), class_count=SIZES[-1])
    x = np.random.default_rng(0).standard_normal((SAMPLES, SIZES[0])).astype(np.float32)
    dataset = LocalDataset.from_arrays({"input": x, "y": np.argmax(x[:, : SIZES[-1]], axis=1)}, contract)
    weights = np.frombuffer(split_weights(model, layout=graphs.layout).weights, "<f4")
    settings = TrainSettings(epochs=1, batch=BATCH, learning_rate=0.01, seed=0)
    print("training", flush=True)
    while True:
        trainer.train(weights, dataset, settings)


if __name__ == "__main__":
    main()
