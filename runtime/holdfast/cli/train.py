"""`holdfast train`: train a bundle's model on local samples, as a device would, and show what it learned."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import StateError, UsageError

if TYPE_CHECKING:
    from holdfast.clock import Clock
    from holdfast.learn.data import LocalDataset
    from holdfast.learn.trainable import TrainableBundle
    from holdfast.learn.training import EvaluateResult, TrainProgress, TrainResult

BAR_CELLS = 30
REDRAW_S = 0.1
CHECKPOINT_BYTES = 4_294_967_296  # 4 GiB: no walls around this process, unlike around a device's worker


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle file")
    parser.add_argument(
        "--data", type=Path, required=True, metavar="PATH", help="samples: FILE.npz with x and y, FILE.csv, or a folder"
    )
    parser.add_argument("--epochs", type=int, default=5, help="passes over the samples (default %(default)s)")
    parser.add_argument("--batch", type=int, help="samples per step; default and most: what the bundle was packed for")
    parser.add_argument("--lr", type=float, default=0.1, metavar="RATE", help="learning rate (default %(default)s)")
    parser.add_argument("--proximal-mu", type=float, metavar="MU", help="pull towards the start (default: as packed)")
    parser.add_argument("--clip-norm", type=float, metavar="L2", help="bound of the gradient (default: as packed)")
    parser.add_argument("--seed", type=int, default=0, help="of the shuffle (default %(default)s)")
    parser.add_argument(
        "--hold-out", type=float, default=0.2, metavar="SHARE", help="samples that only judge (default %(default)s)"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads per operator; 1 repeats bit by bit")
    parser.add_argument("--nice", type=int, default=0, metavar="N", help="give way to others: 0 to 19 (default 0)")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="go on from here after an interruption")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="write the trained weights, by parameter name")
    parser.add_argument("--curve", type=Path, metavar="FILE.svg", help="draw the loss curve")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


@dataclass(slots=True)
class _Recorder:
    """Keeps the losses and draws the bar."""

    clock: Clock
    losses: list[float] = field(default_factory=list)
    first_s: float = math.nan
    last_s: float = math.nan
    drawn_s: float = -math.inf

    def __call__(self, at: TrainProgress) -> None:
        now = self.clock.monotonic_s()
        self.first_s = now if not self.losses else self.first_s
        self.last_s = now
        self.losses.append(at.loss)
        is_epoch_end = at.step * at.epochs % at.steps == 0
        if sys.stderr.isatty() and (now - self.drawn_s >= REDRAW_S or at.step == at.steps):
            cells = BAR_CELLS * at.step // at.steps
            bar = "#" * cells + "." * (BAR_CELLS - cells)
            end = "\n" if at.step == at.steps else ""
            text = f"\r[{bar}] epoch {at.epoch}/{at.epochs} step {at.step}/{at.steps} loss {at.loss:.4f} "
            print(text, end=end, file=sys.stderr, flush=True)
            self.drawn_s = now
        elif not sys.stderr.isatty() and is_epoch_end:
            print(f"epoch {at.epoch}/{at.epochs}: step {at.step}/{at.steps}, loss {at.loss:.4f}", file=sys.stderr)

    @property
    def seconds_per_step(self) -> float | None:
        return (self.last_s - self.first_s) / (len(self.losses) - 1) if len(self.losses) > 1 else None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What there is to tell. `judged_on` says on which samples `before` and `after` were measured."""

    opened: TrainableBundle
    learning: LocalDataset
    held_out: LocalDataset
    judged_on: str
    before: EvaluateResult
    after: EvaluateResult
    result: TrainResult
    recorder: _Recorder


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.cli.bundle import read_bytes
    from holdfast.clock import SystemClock
    from holdfast.learn.checkpoint import CheckpointFile
    from holdfast.learn.data_source import open_dataset
    from holdfast.learn.device_check import check_on_device
    from holdfast.learn.trainable import open_trainable
    from holdfast.learn.training import TrainerOptions, TrainSettings
    from holdfast.learn.yielding import lower_priority
    from holdfast.wire.limits import MAX_BLOB_BYTES

    if not 0 <= arguments.nice <= 19:
        raise UsageError(f"--nice is between 0 and 19, got {arguments.nice}")
    for path in (arguments.out, arguments.curve, arguments.checkpoint):
        _check_place(path)
    if arguments.nice:
        lower_priority(arguments.nice)
    clock = SystemClock()
    options = TrainerOptions(intra_op_threads=arguments.threads)
    opened = open_trainable(read_bytes(arguments.bundle, "bundle", MAX_BLOB_BYTES), options, clock)
    learning, held_out = open_dataset(arguments.data, opened.contract).split(arguments.hold_out, seed=0)
    check_on_device(opened, learning)
    judge, judged_on = (held_out, "held out") if held_out.count else (learning, "training")
    batch = opened.training.batch if arguments.batch is None else arguments.batch
    settings = TrainSettings(
        arguments.epochs,
        batch,
        arguments.lr,
        arguments.seed,
        proximal_mu=_chosen(arguments.proximal_mu, opened.training.proximal_mu),
        gradient_clip=_chosen(arguments.clip_norm, opened.training.gradient_clip),
    )
    checkpoint = CheckpointFile(arguments.checkpoint, CHECKPOINT_BYTES) if arguments.checkpoint else None
    recorder = _Recorder(clock)
    before = opened.trainer.evaluate(opened.weights, judge)
    result = opened.trainer.train(opened.weights, learning, settings, recorder, checkpoint=checkpoint)
    moved = opened.layout.unpack(opened.layout.add_delta(opened.weights, result.delta))
    trained = opened.layout.pack({**moved, **result.local_state})
    after = opened.trainer.evaluate(trained, judge)
    outcome = _Outcome(opened, learning, held_out, judged_on, before, after, result, recorder)
    if arguments.out:
        _write_weights(arguments.out, opened, trained)
    if checkpoint:
        checkpoint.discard()
    _show(arguments, outcome)
    return EXIT_OK


def _check_place(path: Path | None) -> None:
    """Refuse now what could not be written when the training is over."""
    if path is not None and not os.access(path.parent, os.W_OK | os.X_OK):
        raise StateError(f"cannot write {path}: {path.parent} is no folder that can be written to")


def _chosen(asked: float | None, packed: float | None) -> float:
    """What was asked for, else what the author packed the model with; 0 is none."""
    return (packed or 0.0) if asked is None else asked


def _write_weights(path: Path, opened: TrainableBundle, weights: object) -> None:
    import io

    import numpy as np

    from holdfast.trust.durable import write_atomic

    buffer = io.BytesIO()
    np.savez(buffer, **opened.layout.unpack(np.asarray(weights)))  # type: ignore[arg-type]  # names come from a model
    write_atomic(path, buffer.getvalue(), 0o644)


def _show(arguments: argparse.Namespace, outcome: _Outcome) -> None:
    from holdfast.cli.curve import svg_curve, text_curve
    from holdfast.trust.durable import write_atomic

    manifest, losses = outcome.opened.manifest, outcome.recorder.losses
    if arguments.curve:
        title = f"{manifest.name} {manifest.version}: loss of each step's batch"
        write_atomic(arguments.curve, svg_curve(losses, title).encode(), 0o644)
    facts = _facts(outcome)
    if arguments.json:
        written = {"weights": arguments.out, "curve": arguments.curve}
        print(json.dumps({**facts, **{name: None if path is None else str(path) for name, path in written.items()}}))
        return
    result = outcome.result
    print(text_curve(losses))
    print(f"{manifest.name} {manifest.version}: {result.steps} steps over {outcome.learning.count} samples", end="")
    print(f", by class {', '.join(map(str, outcome.learning.class_counts))}" if outcome.learning.class_counts else "")
    print(f"measured on {facts['judged_samples']} {outcome.judged_on} samples:")
    print(f"  loss      {outcome.before.loss:9.4f} -> {outcome.after.loss:9.4f}")
    if outcome.before.accuracy is not None and outcome.after.accuracy is not None:
        print(f"  accuracy  {outcome.before.accuracy:9.4f} -> {outcome.after.accuracy:9.4f}")
    per_step = outcome.recorder.seconds_per_step
    speed = "" if per_step is None else f"{per_step * 1e3:.3g} ms per step, "
    print(f"{speed}{result.cpu_seconds:.3g} s of CPU, peak memory {int(str(facts['peak_memory_bytes'])) >> 20} MiB")
    print(f"the weights moved by {result.delta_norm:.4g} (L2); first gradient {result.gradient_norm:.4g}")
    if arguments.out:
        print(f"trained weights: {arguments.out}")


def _facts(outcome: _Outcome) -> dict[str, object]:
    result, bundle = outcome.result, outcome.opened.bundle
    return {
        "model": bundle.manifest.name,
        "version": bundle.manifest.version,
        "digest": bundle.digest,
        "samples": outcome.learning.count,
        "class_counts": list(outcome.learning.class_counts),
        "judged_on": outcome.judged_on,
        "judged_samples": outcome.held_out.count or outcome.learning.count,
        "judged_labels": outcome.after.count,
        "loss_before": outcome.before.loss,
        "loss_after": outcome.after.loss,
        "accuracy_before": outcome.before.accuracy,
        "accuracy_after": outcome.after.accuracy,
        "steps": result.steps,
        "seconds_per_step": outcome.recorder.seconds_per_step,
        "cpu_seconds": result.cpu_seconds,
        "peak_memory_bytes": _peak_memory_bytes(),
        "delta_norm": result.delta_norm,
        "gradient_norm": result.gradient_norm,
        "resumed_epochs": result.resumed_epochs,
        "checkpoint_problem": result.checkpoint_problem,
    }


def _peak_memory_bytes() -> int:
    """The most that this process held since it became this program; getrusage also counts what its parent held."""
    import re
    import resource

    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
    except OSError:
        found = None
    return 1024 * (int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


TRAIN = Command(
    help="train a bundle's model on local samples, as a device would",
    add_arguments=_arguments,
    run=_run,
    description="""Train a bundle's model on local samples, with the same graphs and code that a device uses.
The bundle is read, not changed; who signed it is not checked (holdfast bundle verify).

  holdfast train digits-1.bundle --data samples.npz --epochs 3 --lr 0.1
  holdfast train digits-1.bundle --data samples/ --out trained.npz --curve loss.svg --json""",
)
