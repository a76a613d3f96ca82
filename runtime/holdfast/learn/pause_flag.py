"""A file that is there while the worker shall pause: written by the agent, looked for by the worker before each step.

Why a file: the worker asks before every step, so asking must cost microseconds and need nobody's answer; a signal that
stops the process would stop its heartbeat too, and the coordinator would give it up.
"""

from __future__ import annotations

from pathlib import Path


class PauseFlag:
    """One file, in a folder that only this user can reach."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def show(self, *, wanted: bool) -> None:
        """The agent's side: make the file or take it away."""
        if wanted:
            self.path.touch(mode=0o600)
        else:
            self.path.unlink(missing_ok=True)

    def is_up(self) -> bool:
        """The worker's side. A file that cannot be looked for asks for nothing."""
        return self.path.exists()
