"""One decoder under a coverage-guided fuzzer: `python -m tests.fuzz.long_run DECODER SECONDS FOLDER`, in .venv-fuzz.

FOLDER gets the seeds, what was found to be interesting, and an input that broke something, as `crash-...`.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

MAX_INPUT_BYTES = 2_048
HANG_S = 10  # of one input
RSS_MIB = 1_024  # of the process: Python, numpy, onnxruntime and the fuzzer's own tables take 300
ALLOCATION_MIB = 64  # at once


def main() -> None:
    name, seconds, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    with atheris.instrument_imports(include=["holdfast.serving"]):
        from tests.fuzz.decoders import DECODERS
        from tests.fuzz.seeds import SEEDS

    corpus = folder / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS[name]:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    bounds = [f"-max_total_time={seconds}", f"-max_len={MAX_INPUT_BYTES}", f"-timeout={HANG_S}"]
    bounds += [f"-rss_limit_mb={RSS_MIB}", f"-malloc_limit_mb={ALLOCATION_MIB}", f"-artifact_prefix={folder}/"]
    atheris.Setup([sys.argv[0], *bounds, "-print_final_stats=1", str(corpus)], DECODERS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
