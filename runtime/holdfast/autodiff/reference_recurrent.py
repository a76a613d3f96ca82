"""RNN, LSTM and GRU for ONNX's reference evaluator, in the place of its own, which pass over the lengths of sequences.

Each row runs alone, as long as it is (operator specification of sequence_lens): what is behind its end is 0, and its
last state is that of its own end, or of its own beginning on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx.reference.op_run import OpRun
from onnx.reference.ops.op_gru import CommonGRU
from onnx.reference.ops.op_lstm import CommonLSTM
from onnx.reference.ops.op_rnn import CommonRNN

Doubles = NDArray[np.float64]
Run = Callable[..., tuple[Doubles, ...]]


def _row_by_row(
    run: Run, x: Doubles, weights: tuple[Any, ...], lengths: Any, given: tuple[Any, ...], settings: dict[str, Any]
) -> tuple[Doubles, ...]:
    """One run for all rows where they are of one length.

    Args:
        x: float64[steps, batch, inputs]. weights: W, R and B. lengths: int32[batch] or None.
        given: what else the operator has: initial states, [directions, batch, hidden] or None, and peepholes.
    """
    if lengths is None:
        return run(x, *weights, None, *given, **settings)
    steps, found = x.shape[0], []
    for row, length in enumerate(lengths):
        own = [None if each is None else each[:, row : row + 1] if each.ndim == 3 else each for each in given]
        y, *states = run(x[:length, row : row + 1], *weights, None, *own, **settings)
        found.append((np.pad(y, ((0, steps - length), (0, 0), (0, 0), (0, 0))), *states))
    sequences, *lasts = zip(*found, strict=True)
    return (np.concatenate(sequences, axis=2), *(np.concatenate(each, axis=1) for each in lasts))


class LSTM(CommonLSTM):
    """Of onnx, row by row."""

    def _run(self, x: Any, w: Any, r: Any, b: Any = None, n: Any = None, *given: Any, **settings: Any) -> Any:  # type: ignore[override]  # one form for all three
        return _row_by_row(super()._run, x, (w, r, b), n, given, settings)


class GRU(CommonGRU):
    """Of onnx, row by row."""

    def _run(self, x: Any, w: Any, r: Any, b: Any = None, n: Any = None, *given: Any, **settings: Any) -> Any:  # type: ignore[override]  # as above
        return _row_by_row(super()._run, x, (w, r, b), n, given, settings)


class RNN(CommonRNN):
    """Of onnx, row by row."""

    def _run(self, x: Any, w: Any, r: Any, b: Any = None, n: Any = None, *given: Any, **settings: Any) -> Any:  # type: ignore[override]  # as above
        return _row_by_row(super()._run, x, (w, r, b), n, given, settings)


RECURRENT: tuple[type[OpRun], ...] = (LSTM, GRU, RNN)
for _operator in RECURRENT:
    _operator.op_domain = ""
