"""Histograms between what travels (`messages.Histogram`) and what computes (`sketch.histogram`)."""

from __future__ import annotations

from collections.abc import Iterable

from holdfast.sketch.histogram import HistogramSnapshot, merge_snapshots
from holdfast.wire.messages import Histogram


def to_message(snapshot: HistogramSnapshot) -> Histogram:
    """The message that says the same."""
    return Histogram(
        scale=snapshot.scale,
        zero_count=snapshot.zero_count,
        offset=snapshot.offset,
        counts=snapshot.counts,
        count=snapshot.count,
        sum=snapshot.sum,
        minimum=snapshot.min,
        maximum=snapshot.max,
    )


def to_snapshot(message: Histogram) -> HistogramSnapshot:
    """The plain fields of a message; unchecked until a histogram is made of them."""
    return HistogramSnapshot(
        scale=message.scale,
        zero_count=message.zero_count,
        offset=message.offset,
        counts=message.counts,
        sum=message.sum,
        min=message.minimum,
        max=message.maximum,
        count=message.count,
    )


def merge(messages: Iterable[Histogram]) -> Histogram:
    """All messages as one, exactly.

    Raises:
        FormatError: the fields of one do not fit together.
    """
    return to_message(merge_snapshots(to_snapshot(message) for message in messages))
