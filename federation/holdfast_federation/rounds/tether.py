"""Ties a child to its parent: it dies when the parent does.

`python -m holdfast_federation.rounds.tether PARENT_ID PROGRAM ARG...`

Why: a coordinator that is killed must not leave a SuperLink behind that holds the database of the next one. The
program itself stays unmodified; the wish survives exec (prctl(2), PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1
SIGKILL = 9


def tether() -> None:
    """End this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)


if __name__ == "__main__":
    tether()
    if os.getppid() != int(sys.argv.pop(1)):
        sys.exit(1)  # the parent was gone before the wish was made
    os.execv(sys.argv[1], sys.argv[1:])
