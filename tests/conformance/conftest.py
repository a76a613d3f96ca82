"""A server for programs that are not ours: plain, and over TLS. Everything here is slow and needs `install.sh`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from onnx import TensorProto
from tests.fakes import served_models as models
from tests.fakes.serving import pool_of, running
from tests.fakes.tls_site import Site

from holdfast.serving.native.tls import TlsFiles
from holdfast.serving.server import Address, ServerOptions

MODELS = {
    "double": models.scale(2.0),
    "perceptron": models.perceptron(),
    "identity": models.identity(),
    "words": models.identity(TensorProto.STRING, ("n",)),
    "slow": models.hangs_at_first_run(),
}
HERE = str(Path(__file__).parent)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if str(item.path).startswith(HERE):
            item.add_marker(pytest.mark.slow)


@dataclass(frozen=True, slots=True)
class Target:
    """A server under test, and the authority its certificate is from; none: plain text."""

    address: Address
    authority: Path | None = None

    def __str__(self) -> str:
        return str(self.address)

    @property
    def url(self) -> str:
        return f"{'http' if self.authority is None else 'https'}://{self.address}"


@pytest.fixture(scope="session")
def plain() -> Iterator[Target]:
    with running(pool_of(MODELS), options_of(None)) as address:
        yield Target(address)


@pytest.fixture(scope="session")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    site = Site(tmp_path_factory.mktemp("site"))
    with running(pool_of(MODELS), options_of(site.files(mutual=False))) as address:
        yield Target(address, site.folder / "ca.pem")


@pytest.fixture(params=["plain", "secured"])
def target(request: pytest.FixtureRequest) -> Target:
    chosen: Target = request.getfixturevalue(request.param)
    return chosen


def options_of(tls: TlsFiles | None) -> ServerOptions:
    return ServerOptions(Address("127.0.0.1", 0), tls=tls, max_in_flight=2_048)  # some clients here have 800
