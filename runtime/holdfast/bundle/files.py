"""What lies in a bundle, by name."""

from __future__ import annotations

KIND = "bundle"  # of the container

MANIFEST_FILE = "manifest.json"
SIGNATURE_FILE = "signature"  # DSSE over the exact manifest bytes
MODEL_FILE = "model.onnx"  # names its weights as external data in:
WEIGHTS_FILE = "weights.bin"
GOLDEN_FILE = "golden.npz"
PROFILE_FILE = "profile.json"
CARD_FILE = "card.md"
TRAIN_GRAPH = "graphs/train.onnx"
EVALUATE_GRAPH = "graphs/evaluate.onnx"
LOSS_GRAPH = "graphs/loss.onnx"
ACCUMULATE_GRAPH = "graphs/accumulate.onnx"  # this and the next: of a bundle whose steps take several batches
APPLY_GRAPH = "graphs/apply.onnx"
INPUT_GRADIENT_GRAPH = "graphs/input_gradient.onnx"
GRAPHS = (TRAIN_GRAPH, EVALUATE_GRAPH, LOSS_GRAPH, INPUT_GRADIENT_GRAPH, ACCUMULATE_GRAPH, APPLY_GRAPH)
# in a candidate only: the ancestor that the author signed
ANCESTOR_MANIFEST_FILE = "lineage/author_manifest.json"
ANCESTOR_SIGNATURE_FILE = "lineage/author_signature"
