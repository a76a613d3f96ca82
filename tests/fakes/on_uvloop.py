"""A pytest plugin, every native server of the tests on uvloop: `pytest -p tests.fakes.on_uvloop tests/unit/serving`."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from holdfast.serving.server import ServerOptions


@pytest.fixture(autouse=True, scope="session")
def _on_uvloop() -> Any:
    """Change the default; what asks for a loop by name gets that one."""
    place = [field.name for field in dataclasses.fields(ServerOptions)].index("loop")
    before = ServerOptions.__init__.__defaults__
    assert before is not None
    assert before[place] == "asyncio"
    ServerOptions.__init__.__defaults__ = (*before[:place], "uvloop", *before[place + 1 :])
    yield
    ServerOptions.__init__.__defaults__ = before
