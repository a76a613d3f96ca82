"""What a sub-command is: a name's help, its arguments, and a function that returns the exit code.

Modules named in the entry-point group `holdfast.commands` hold one `Command` each per entry. They import anything
heavy inside `run`, so that `holdfast --help` stays quick.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass

EXIT_OK = 0
EXIT_FAILED = 1  # the work was done and the answer is no, or somebody's data is at fault
EXIT_USAGE = 2  # the command line itself is at fault
EXIT_INTERRUPTED = 130  # Ctrl-C, as shells count it (128 + SIGINT)


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command. `help` is one line, lower case; `description` may teach with examples."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    description: str = ""
