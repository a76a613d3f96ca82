"""Loads asyncio without TLS, for a server that has none: 5 MB less and a faster start.

asyncio imports `ssl`, and with it OpenSSL, if there is one; of a Python that was built without, it makes do. Whoever
imports `ssl` afterwards gets it as ever; only this process's asyncio cannot speak it.
"""

from __future__ import annotations

import sys
from importlib import import_module


def load_asyncio_without_tls() -> None:
    """Load asyncio without `ssl`; does nothing where either is loaded already. For a command, not for a library."""
    if "asyncio" in sys.modules or "ssl" in sys.modules:
        return
    sys.modules["ssl"] = None  # type: ignore[assignment]  # how Python spells "not there": an import of it fails
    try:
        import_module("asyncio")
    finally:
        del sys.modules["ssl"]
