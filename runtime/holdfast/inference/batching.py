"""Runs requests for one model: together where rows may mix, else one by one; the answers are the same.

Rules: requests share a run only if the model's `Mixing` allows it, their inputs have the same shape but for the number
of rows, and they want the same outputs. A batch is filled up to a probed size with copies of its last row. If a run
fails, its halves are tried, so that only the request that is wrong gets the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from holdfast.errors import DeadlineError, HoldfastError, InferenceError
from holdfast.inference.session import ModelSession, RunStop
from holdfast.inference.tensors import Array, TensorRequest

Outputs = dict[str, Array]


def run_requests(
    session: ModelSession, requests: Sequence[TensorRequest], stop: RunStop | None = None
) -> list[Outputs | HoldfastError]:
    """Answer requests for one model, in their order. One request's error never touches another's answer."""
    answers: list[Outputs | HoldfastError] = [_UNANSWERED] * len(requests)
    largest = session.traits.mixing.buckets[-1] if session.traits.mixing.is_allowed else 0
    filling: dict[tuple[str, ...], list[int]] = {}
    rows = [session.shared_rows(request.inputs) for request in requests]

    def run(places: Sequence[int]) -> None:
        members = [requests[place] for place in places]
        for place, answer in zip(
            places, run_together(session, members, [rows[place] for place in places], stop), strict=True
        ):
            answers[place] = answer

    for place, request in enumerate(requests):
        try:
            session.check(request.inputs, request.outputs)
        except HoldfastError as error:
            answers[place] = error
            continue
        if rows[place] == 0:
            run([place])
            continue
        group = filling.setdefault(request.outputs, [])
        if sum(rows[member] for member in group) + rows[place] > largest:
            run(group)
            group.clear()
        group.append(place)
    for group in filling.values():
        run(group)
    return answers


def run_together(
    session: ModelSession, members: Sequence[TensorRequest], rows: Sequence[int], stop: RunStop | None = None
) -> list[Outputs | HoldfastError]:
    """Answer requests in one run.

    Args:
        members: of this session's model, checked, with the same outputs wanted.
        rows: of each, as `shared_rows` counts them; together no more than the largest bucket. A request of 0 must be
            the only one.
    """
    try:
        return _run_once(session, members, rows, stop)
    except DeadlineError as error:
        return [error] * len(members)
    except (HoldfastError, MemoryError) as error:
        if len(members) == 1:
            return [error if isinstance(error, HoldfastError) else InferenceError("the model ran out of memory")]
    # no clue whose fault it was: halve until the one that is wrong stands alone
    half = len(members) // 2
    return run_together(session, members[:half], rows[:half], stop) + run_together(
        session, members[half:], rows[half:], stop
    )


def join(members: Sequence[TensorRequest], padding: int) -> dict[str, Array]:
    """The inputs of several requests, one after the other along the batch axis, then `padding` times the last row."""
    joined: dict[str, Array] = {}
    for name in members[0].inputs:
        parts = [member.inputs[name] for member in members]
        if padding:
            parts += [parts[-1][-1:]] * padding
        joined[name] = np.concatenate(parts)
    return joined


def _run_once(
    session: ModelSession, members: Sequence[TensorRequest], rows: Sequence[int], stop: RunStop | None
) -> list[Outputs | HoldfastError]:
    wanted, total = members[0].outputs, sum(rows)
    bucket = session.traits.mixing.bucket_for(total) if total else 0
    if len(members) == 1 and bucket == total:
        return [session.run_checked(members[0].inputs, wanted, stop)]
    assert bucket, "more rows in a run than were probed"
    outputs = session.run_checked(join(members, bucket - total), wanted, stop)
    ends = list(accumulate(rows, initial=0))
    if len(outputs) == 1:  # most models; a comprehension per request would cost as much as the rest
        ((name, array),) = outputs.items()
        return [{name: array[start:end]} for start, end in pairwise(ends)]
    return [{name: array[start:end] for name, array in outputs.items()} for start, end in pairwise(ends)]


_UNANSWERED = InferenceError("the request was not answered")
