"""What does not hold, and where: the verifier's one way of saying no."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the evidence. `file` and `offset` are of the container; `entry` is the position in the log."""

    file: str = ""
    offset: int | None = None
    entry: int | None = None
    device_id: str = ""
    seq: int | None = None
    field: str = ""

    def __str__(self) -> str:
        parts = [
            f"entry {self.entry}" if self.entry is not None else "",
            f"device {self.device_id}" if self.device_id else "",
            f"seq {self.seq}" if self.seq is not None else "",
            f"field {self.field}" if self.field else "",
            f"file {self.file}" if self.file else "",
            f"byte {self.offset}" if self.offset is not None else "",
        ]
        return ", ".join(part for part in parts if part) or "the whole file"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that does not hold: the step that found it, what is wrong, and where."""

    step: str
    message: str
    place: Place = Place()

    def __str__(self) -> str:
        return f"{self.step}: {self.message} ({self.place})"
