"""Every test that talks to a running server does so over both fronts."""

from __future__ import annotations

import pytest
from tests.fakes.serving import FRONTS

from holdfast.serving.server import Front


@pytest.fixture(scope="module", params=FRONTS)
def front(request: pytest.FixtureRequest) -> Front:
    chosen: Front = request.param
    return chosen
