"""What a server offers, without a server: routes and calls over a pool, for tests of what is answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from holdfast.clock import Clock, SystemClock
from holdfast.inference.pool import ModelPool
from holdfast.serving.authorisation import OPEN, AccessRules
from holdfast.serving.control import Control, Offer
from holdfast.serving.protocols import ModelRepository
from holdfast.serving.routes import HttpResponse, Routes
from holdfast.serving.rpc import CallContext, RpcTable, UnaryCall
from holdfast.serving.service import InferenceService
from holdfast.serving.shared_memory import SharedMemory
from holdfast.serving.statistics import Statistics

LOCAL = CallContext(is_local=True)
ADMIN = CallContext(is_local=True, is_admin=True)


@dataclass(frozen=True, slots=True)
class Counter:
    """Where requests are handed in."""

    service: InferenceService
    routes: Routes
    table: RpcTable

    def http(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        context: CallContext = LOCAL,
    ) -> HttpResponse:
        headers = headers or {}
        return self.routes.answer(method, path, headers, body, replace(context, metadata=headers))

    def grpc(self, path: str, data: bytes = b"", context: CallContext = LOCAL) -> bytes:
        call = self.table.find(path)
        assert isinstance(call, UnaryCall)
        return call.answer(data, context)


def counter(
    pool: ModelPool,
    rules: AccessRules = OPEN,
    repository: ModelRepository | None = None,
    regions: SharedMemory | None = None,
    clock: Clock | None = None,
) -> Counter:
    """Routes and calls over a pool."""
    clock = clock or SystemClock()
    statistics = Statistics(pool, clock)
    service = InferenceService(pool, (statistics,), clock, observer=statistics)
    control = Control(Offer(pool, service, statistics, clock, rules, repository, regions))
    return Counter(service, Routes(control, service), RpcTable(control, service, clock))
