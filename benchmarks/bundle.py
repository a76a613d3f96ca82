"""What it costs to trust a model file: form, every hash, golden outputs, the author's signature."""

from __future__ import annotations

import hashlib

import numpy as np
from benchmarks.harness import Figures, Options, Outcome, compare, timed
from tests.fakes.bundles import bundle_files, make_keys, manifest_of, signed_bundle

from holdfast.bundle import files as names
from holdfast.bundle.verify import Trust, read_bundle, verify_bundle
from holdfast.trust.envelope import verify_envelope
from holdfast.wire.messages import MANIFEST_TYPE

CARD_BYTES = 4 * 1024**2  # a bundle of about 4 MiB, most of it in one file
CALLS = 100


def run(options: Options) -> list[Outcome]:
    keys = make_keys()
    files = bundle_files()
    small = signed_bundle(manifest_of(files), files, keys.author)
    files[names.TRAIN_GRAPH] = np.random.default_rng(0).bytes(CARD_BYTES)
    large = signed_bundle(manifest_of(files), files, keys.author)
    trust, count = Trust((keys.author.public_key,)), options.count(CALLS)
    signed = read_bundle(small)

    def signature() -> Figures:
        return timed(lambda: verify_envelope(signed.signature, MANIFEST_TYPE, trust.authors), count)

    def digest() -> Figures:
        return timed(lambda: hashlib.sha256(large).digest(), count)

    def verify_small() -> Figures:
        return timed(lambda: verify_bundle(read_bundle(small), trust), count)

    def verify_large() -> Figures:
        return timed(lambda: verify_bundle(read_bundle(large), trust), count)

    of_small = (("its signature alone", signature), ("read and verify", verify_small))
    of_large = (("sha256 of its bytes", digest), ("read and verify", verify_large))
    return [
        *compare("bundle/verify-small", *of_small, options.rounds),
        *compare("bundle/verify-4-mib", *of_large, options.rounds),
    ]
