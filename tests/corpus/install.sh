#!/bin/sh
# Makes .venv-corpus, the environment with PyTorch (CPU) and transformers in which the corpus and the live comparison of
# the gradient rules run; about 1.2 GB. Usage: tests/corpus/install.sh [PYTHON]
set -eu
cd "$(dirname "$0")/../.."
python="${1:-${PYTHON:-python3}}"
torch="torch==2.13.0+cpu" # without the suffix, PyPI gives the build for CUDA: several gigabytes
pip=".venv-corpus/bin/python -m pip --disable-pip-version-check --quiet"

[ -x .venv-corpus/bin/python ] || "$python" -m venv .venv-corpus
# an index of one's own may have the build for CPUs; PyPI has not, PyTorch's own index has
$pip install "$torch" 2>/dev/null || $pip install --extra-index-url https://download.pytorch.org/whl/cpu "$torch"
$pip install -r tests/corpus/requirements.txt
.venv-corpus/bin/python -c "import torch, transformers, onnxscript, onnxruntime"
echo "ready: .venv-corpus/bin/python -m tests.corpus.make_corpus"
