"""Shapes in which one axis is the batch: how they broadcast, and what may not happen to that axis.

A shape is a tuple of sizes; ROWS stands for the number of rows of a batch, whatever it is. A tensor either has ROWS as
its first axis and nowhere else (its row i comes from row i of the inputs alone), or no ROWS at all (it is the same for
every request). Anything else is refused by `MixedRowsError`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from holdfast.errors import ModelError
from holdfast.inference.tensors import Array

ROWS = None
Size = int | None
Shape = tuple[Size, ...]
Numbers = tuple[Size, ...]  # values of a tensor that a graph computes from shapes


class MixedRowsError(ModelError):
    """A row of an answer could depend on another row of the batch, or it cannot be shown that it does not."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """What is known of one tensor of a graph. `shape` and `value` are None where they are not known.

    `numbers` are the values of a tensor of int64 among which ROWS stands for the number of rows; else None.
    """

    shape: Shape | None
    value: Array | None = None
    numbers: Numbers | None = None

    @property
    def has_rows(self) -> bool:
        return self.shape is not None and ROWS in self.shape

    @property
    def counts_rows(self) -> bool:
        """Whether its values depend on how many rows there are."""
        return self.numbers is not None

    def known(self) -> Shape:
        """The shape.

        Raises:
            MixedRowsError: it is not known.
        """
        if self.shape is None:
            raise MixedRowsError("the shape of a tensor cannot be told from the file")
        return self.shape

    def integers(self) -> tuple[int, ...]:
        """The value of a constant of int64.

        Raises:
            MixedRowsError: it is computed, outside the file, or not int64.
        """
        if self.value is None or self.value.dtype.kind != "i":
            raise MixedRowsError("a shape, axis or index is not a constant in the file")
        return tuple(int(item) for item in self.value.ravel().tolist())


def checked(shape: Shape) -> Shape:
    """The shape, if ROWS is its first axis only.

    Raises:
        MixedRowsError: rows lie along another axis, or along none.
    """
    if not shape or shape[0] is not ROWS or ROWS in shape[1:]:
        raise MixedRowsError("rows do not stay on the first axis")
    return shape


def broadcast(*shapes: Shape) -> Shape:
    """Numpy's broadcasting, in which ROWS meets only ROWS or 1.

    Raises:
        MixedRowsError: rows meet another axis.
    """
    rank = max(map(len, shapes))
    wide = [(1,) * (rank - len(shape)) + shape for shape in shapes]
    return tuple(_common(sizes) for sizes in zip(*wide, strict=True))


def axis_in(axis: int, rank: int) -> int:
    """An axis counted from the front; not the first, which is the batch.

    Raises:
        MixedRowsError: it is the batch axis, or none of the tensor's.
    """
    if not -rank <= axis < rank:
        raise MixedRowsError(f"axis {axis} is outside a tensor of {rank} axes")
    if axis % rank == 0:
        raise MixedRowsError("works along the batch axis")
    return axis % rank


def sizes(shape: Shape) -> tuple[int, ...]:
    """The sizes of axes that must not be the batch.

    Raises:
        MixedRowsError: one is.
    """
    plain = tuple(size for size in shape if size is not None)
    if len(plain) != len(shape):
        raise MixedRowsError("works along the batch axis")
    return plain


def row_elements(shape: Shape) -> int:
    """Elements of one row."""
    return math.prod(sizes(checked(shape)[1:]))


def _common(of: tuple[Size, ...]) -> Size:
    wanted = {size for size in of if size != 1}
    if len(wanted) > 1:
        raise MixedRowsError("axes of different sizes meet, one of which may be the batch")
    return wanted.pop() if wanted else 1
