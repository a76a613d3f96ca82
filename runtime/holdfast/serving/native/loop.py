"""Which event loop the native front runs on: asyncio's own, or uvloop's where it was asked for and is installed.

Rules: nothing is chosen because it happens to be installed; what was asked for and is not there is refused by name.
Why not always uvloop: decision 0011.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from holdfast.errors import MissingExtraError

LoopKind = Literal["asyncio", "uvloop"]


def loop_maker(kind: LoopKind) -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes such a loop.

    Raises:
        MissingExtraError: uvloop is not installed.
    """
    if kind == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop  # not at the top: an extra, and 7 MB of memory
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "loop = \"uvloop\" needs 'uvloop'; install it with: pip install 'holdfast[uvloop]', or leave it out"
        ) from error
    return uvloop.new_event_loop
