"""The gRPC front on grpcio: bytes in, bytes out, on a unix socket that only the splice talks to.

Rules: what a call does stands in `rpc.py`, for every front; here are only grpcio's handlers around it. Messages and
concurrent calls are bounded; errors leave through `status.py`. This is one of the three doors where unknown errors are
caught (the rpc edge).
Why generic handlers: the messages live in a private descriptor pool, so no generated service code is registered.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import grpc

from holdfast.clock import Clock
from holdfast.errors import OverloadedError
from holdfast.serving.http2.limits import PingRules
from holdfast.serving.protocols import OnLeave
from holdfast.serving.rpc import CallContext, Origin, RpcTable, StreamCall, UnaryCall, WatchCall
from holdfast.serving.status import status_of
from holdfast.serving.trace_context import trace_context

WORKERS = 8  # more than the cores: a call waits for the network, not only for the processor
MAX_LONG_CALLS = 16  # streams and watches: each holds a thread of its own for as long as its client likes
WATCH_BACKLOG = 16  # messages a slow watcher may be behind before its call ends
WATCH_POLL_S = 1.0  # between looks at whether the watcher has left
CODE_KEY = "holdfast-code"  # trailing metadata: the stable code of the error


class GrpcioFront:
    """A grpcio server over a table of calls."""

    def __init__(
        self,
        table: RpcTable,
        clock: Clock,
        origin: Origin,
        ids: Mapping[str, str],
        *,
        max_message_bytes: int,
        max_concurrent_calls: int,
        pings: PingRules,
    ) -> None:
        """Args: ids: SPIFFE ids of clients whose TLS ended before us, by the name of their connection's socket."""
        self._server = grpc.server(
            ThreadPoolExecutor(WORKERS + MAX_LONG_CALLS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", max_message_bytes),
                ("grpc.max_send_message_length", max_message_bytes),
                ("grpc.so_reuseport", 0),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", round(pings.min_interval_s * 1e3)),
                ("grpc.http2.max_ping_strikes", _strikes(pings)),
            ],
            maximum_concurrent_rpcs=max_concurrent_calls,
        )
        self._server.add_generic_rpc_handlers((_Calls(table, clock, origin, ids),))

    def start(self, address: str) -> None:
        """Listen on `address`, a unix socket. Returns when calls are answered."""
        self._server.add_insecure_port(address)
        self._server.start()

    def stop(self, grace_s: float) -> None:
        """Take no new calls, give those running `grace_s`, then end them. Returns when all have ended."""
        self._server.stop(grace_s).wait(grace_s + 1.0)


class _Calls(grpc.GenericRpcHandler):
    """Finds the handler of a call."""

    def __init__(self, table: RpcTable, clock: Clock, origin: Origin, ids: Mapping[str, str]) -> None:
        self._ids = ids
        self._table = table
        self._clock = clock
        self._origin = origin
        self._long_calls = threading.BoundedSemaphore(MAX_LONG_CALLS)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        call = self._table.find(str(handler_call_details.method))
        if call is None:
            return None  # grpcio answers UNIMPLEMENTED
        if isinstance(call, UnaryCall):
            return grpc.unary_unary_rpc_method_handler(self._unary(call))
        if isinstance(call, StreamCall):
            return grpc.stream_stream_rpc_method_handler(self._stream(call))
        return grpc.unary_stream_rpc_method_handler(self._watch(call))

    def _unary(self, call: UnaryCall) -> Callable[[bytes, grpc.ServicerContext], bytes]:
        def edge(data: bytes, context: grpc.ServicerContext) -> bytes:
            known = self._context(context, _Departure(context).tell)
            try:
                answer = call.answer(data, known)
            except Exception as error:  # noqa: BLE001  # the rpc edge; status_of logs what is not ours
                _abort(context, error)
            context.set_trailing_metadata(trace_context(known.metadata))
            return answer

        return edge

    def _stream(self, call: StreamCall) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
        def edge(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            on_leave = _Departure(context).tell
            with self._long_call(context):
                try:
                    for data in messages:
                        yield call.answer(data, self._context(context, on_leave))
                except grpc.RpcError:
                    pass  # the client left in the middle of the stream
                except Exception as error:  # noqa: BLE001  # the rpc edge
                    _abort(context, error)

        return edge

    def _watch(self, call: WatchCall) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
        def edge(data: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            waiting: queue.Queue[bytes] = queue.Queue()
            with self._long_call(context):
                try:
                    end = call.watch(data, self._context(context), waiting.put)
                except Exception as error:  # noqa: BLE001  # the rpc edge
                    _abort(context, error)
                try:
                    while context.is_active() and waiting.qsize() <= WATCH_BACKLOG:
                        with contextlib.suppress(queue.Empty):
                            yield waiting.get(timeout=WATCH_POLL_S)
                finally:
                    end()

        return edge

    @contextlib.contextmanager
    def _long_call(self, context: grpc.ServicerContext) -> Iterator[None]:
        if not self._long_calls.acquire(blocking=False):
            _abort(context, OverloadedError("too many streams at once; end one, or use single calls"))
        try:
            yield
        finally:
            self._long_calls.release()

    def _context(self, context: grpc.ServicerContext, on_leave: OnLeave | None = None) -> CallContext:
        left_s = context.time_remaining()
        deadline_s = None if left_s is None else self._clock.monotonic_s() + left_s
        metadata = {str(key): value for key, value in context.invocation_metadata() if isinstance(value, str)}
        origin = self._origin
        spiffe_id = self._ids.get(context.peer().rpartition("/")[2], "")  # nobody else can name a socket in our folder
        return CallContext(deadline_s, metadata, "", origin.is_admin, origin.is_local, spiffe_id, on_leave)


class _Departure:
    """Tells the one who waits for an answer that the call has ended without it. One callback of grpcio for all."""

    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._tell: Callable[[], None] | None = None
        self._is_over = not context.add_callback(self._ended)

    def tell(self, whom: Callable[[], None] | None) -> None:
        """Call `whom`, and nobody else, when the call ends; at once if it has."""
        with self._lock:
            self._tell = None if self._is_over else whom
            is_late = self._is_over
        if is_late and whom is not None:
            whom()

    def _ended(self) -> None:
        with self._lock:
            self._is_over = True
            whom, self._tell = self._tell, None
        left_s = self._context.time_remaining()
        is_late = left_s is not None and left_s <= 0  # then the scheduler's own alarm answers, and by that name
        if whom is not None and not is_late:
            whom()


def _strikes(pings: PingRules) -> int:
    """How many early PINGs grpcio forgives; 0 = all: where another idle interval was asked for, it has but its own."""
    is_its_own = pings.min_idle_interval_s == PingRules().min_idle_interval_s
    return pings.max_strikes if is_its_own else 0


def _abort(context: grpc.ServicerContext, error: BaseException) -> NoReturn:
    status = status_of(error)
    context.set_trailing_metadata(((CODE_KEY, status.code),))
    context.abort(grpc.StatusCode[status.grpc], status.text)
