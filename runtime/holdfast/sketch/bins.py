"""Counts over fixed bins: how the values of one feature, or the labels of one output, are spread.

The bins come from a reference profile and never change, so counts over the same bins add up exactly, whatever the
order. Everything is immutable: counting and merging return a new value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from holdfast.errors import FormatError, SketchMismatchError

MAX_EDGES = 1_024
MAX_CATEGORIES = 4_096
MAX_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True)
class BinCounts:
    """Counts of numbers between ascending edges.

    `counts` has one entry more than `edges`: below the first edge, [edge k, edge k+1), and from the last edge on.
    `missing` counts what is not a number.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    missing: int = 0

    def __post_init__(self) -> None:
        if len(self.edges) > MAX_EDGES:
            raise FormatError(f"{len(self.edges)} bin edges, at most {MAX_EDGES} are kept")
        if not all(map(math.isfinite, self.edges)) or any(low >= high for low, high in pairwise(self.edges)):
            raise FormatError("bin edges are not finite and ascending")
        if len(self.counts) != len(self.edges) + 1:
            raise FormatError(
                f"{len(self.counts)} bin counts for {len(self.edges)} edges, expected one more than edges"
            )
        _check_counts((*self.counts, self.missing))

    @classmethod
    def empty(cls, edges: Iterable[float]) -> BinCounts:
        """No values yet."""
        kept = tuple(edges)
        return cls(kept, (0,) * (len(kept) + 1))

    @property
    def total(self) -> int:
        """How many values were counted, missing ones included."""
        return sum(self.counts) + self.missing

    def add_many(self, values: npt.ArrayLike) -> BinCounts:
        """With the numbers of `values` counted: float[...], any shape, not modified; infinities go to the end bins."""
        array = np.asarray(values, dtype=np.float64).ravel()
        numbers = array[~np.isnan(array)]
        places = np.searchsorted(np.asarray(self.edges, dtype=np.float64), numbers, side="right")
        added = np.bincount(places, minlength=len(self.counts)).tolist()
        counts = tuple(have + new for have, new in zip(self.counts, added, strict=True))
        return replace(self, counts=counts, missing=self.missing + array.size - numbers.size)

    def merge(self, other: BinCounts) -> BinCounts:
        """Both together.

        Raises:
            SketchMismatchError: the edges differ.
        """
        if self.edges != other.edges:
            raise SketchMismatchError("bin counts over different edges cannot be merged; use one reference profile")
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return BinCounts(self.edges, counts, self.missing + other.missing)


@dataclass(frozen=True, slots=True)
class CategoryCounts:
    """Counts of a fixed list of categories; `other` counts everything that is not in the list."""

    categories: tuple[str, ...]
    counts: tuple[int, ...]
    other: int = 0

    def __post_init__(self) -> None:
        if len(self.categories) > MAX_CATEGORIES:
            raise FormatError(f"{len(self.categories)} categories, at most {MAX_CATEGORIES} are kept")
        if len(set(self.categories)) != len(self.categories):
            raise FormatError("a category is listed twice")
        if len(self.counts) != len(self.categories):
            raise FormatError(f"{len(self.counts)} counts for {len(self.categories)} categories")
        _check_counts((*self.counts, self.other))

    @classmethod
    def empty(cls, categories: Iterable[str]) -> CategoryCounts:
        """No values yet."""
        kept = tuple(categories)
        return cls(kept, (0,) * len(kept))

    @property
    def total(self) -> int:
        """How many values were counted, others included."""
        return sum(self.counts) + self.other

    def add_many(self, values: Iterable[str]) -> CategoryCounts:
        """With `values` counted."""
        found = Counter(values)
        known = [found[category] for category in self.categories]
        counts = tuple(have + new for have, new in zip(self.counts, known, strict=True))
        return replace(self, counts=counts, other=self.other + found.total() - sum(known))

    def merge(self, other: CategoryCounts) -> CategoryCounts:
        """Both together.

        Raises:
            SketchMismatchError: the categories differ.
        """
        if self.categories != other.categories:
            raise SketchMismatchError("counts of different categories cannot be merged; use one reference profile")
        counts = tuple(mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True))
        return CategoryCounts(self.categories, counts, self.other + other.other)


def _check_counts(counts: tuple[int, ...]) -> None:
    if any(count < 0 for count in counts) or sum(counts) > MAX_COUNT:
        raise FormatError("a count is below 0, or the counts together are above 2**63 - 1")
