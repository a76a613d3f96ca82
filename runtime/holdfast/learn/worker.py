"""The federated worker: a process without a network that speaks to the agent's unix socket and to nobody else.

`python -m holdfast.learn.worker` reads its configuration (one JSON object) from standard input, gives up the network
and its share of the machine, and only then imports what learns. It ends when its run is over, when nothing comes for a
while, or with its parent. Exit codes: 0 done, 3 the node key was refused, anything else is a crash.
It writes no text of an exception anywhere but, as its type and place in our code, to its log: values could be data.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from holdfast.learn.isolation import Isolation, isolate

if TYPE_CHECKING:
    from holdfast.clock import Clock
    from holdfast.learn.answer import Answerer
    from holdfast.learn.transport import RoundTask, RoundTransport

logger = logging.getLogger("holdfast.learn.worker")

EXIT_DONE, EXIT_CRASHED, EXIT_REFUSED = 0, 1, 3
MAX_CONFIGURATION_BYTES = 65_536
HEARTBEAT_S = 8.0  # Flower's shortest interval is 10 s
ASK_S = 3.0  # of silence, before the SuperLink is asked whether the run is over
INTERNAL = "HF-INTERNAL"


@dataclass(frozen=True, slots=True)
class WorkerConfiguration:
    """What the agent tells a worker. It names no key but the Flower node's."""

    socket: str
    pause_flag: str
    node_key: str
    remembered: str
    memory_bytes: int
    idle_s: float
    poll_s: float
    stay: bool


def main() -> int:
    """Run one worker. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    sys.excepthook = _log_crash
    configuration = WorkerConfiguration(**json.loads(sys.stdin.buffer.read(MAX_CONFIGURATION_BYTES)))
    walls = isolate(memory_bytes=configuration.memory_bytes)  # before numpy: a user namespace needs one thread
    return _work(configuration, walls)


def _work(configuration: WorkerConfiguration, walls: Isolation) -> int:
    from holdfast.clock import SystemClock
    from holdfast.errors import NodeRefusedError
    from holdfast.learn.agent_socket import AgentSocket
    from holdfast.learn.answer import Answerer
    from holdfast.learn.flower_fleet import FlowerFleet
    from holdfast.learn.pause_flag import PauseFlag

    agent = AgentSocket(configuration.socket)
    agent.ask("/isolation", json.dumps(asdict(walls)).encode())
    clock = SystemClock()
    key = Path(configuration.node_key).read_bytes()
    transport = FlowerFleet(agent.fleet, key, Path(configuration.remembered), clock)
    ended = threading.Event()
    try:
        transport.activate()
        threading.Thread(target=_beat, args=(transport, clock, ended), name="heartbeat", daemon=True).start()
        flag = PauseFlag(Path(configuration.pause_flag))
        answerer = Answerer(agent, clock, Path(configuration.remembered).parent, flag.is_up)
        serve(transport, answerer, configuration, clock)
    except NodeRefusedError as error:
        _log_place("the node key was refused", error)
        return EXIT_REFUSED
    finally:
        ended.set()
    transport.deactivate()
    return EXIT_DONE


def serve(transport: RoundTransport, answerer: Answerer, configuration: WorkerConfiguration, clock: Clock) -> None:
    """Answer messages until their run is over, or none came for the idle time. Raises: NodeRefusedError: shut out."""
    pause = threading.Event()
    last_s = asked_s = clock.monotonic_s()
    run_id = 0
    while configuration.stay or clock.monotonic_s() - last_s < max(configuration.idle_s, answerer.idle_s):
        task = answer_next(transport, answerer)
        if task is not None:
            run_id, last_s = task.run_id, clock.monotonic_s()
            continue
        if run_id and not configuration.stay and clock.monotonic_s() - max(last_s, asked_s) > ASK_S:
            asked_s = clock.monotonic_s()
            if _is_over(transport, run_id):
                return
        clock.wait(pause, configuration.poll_s)


def answer_next(transport: RoundTransport, answerer: Answerer) -> RoundTask | None:
    """Fetch one message and answer it, if there is one. Whatever goes wrong is answered with a code, never with text.

    Raises: NodeRefusedError: shut out.
    """
    from holdfast.errors import HoldfastError, NodeRefusedError

    task = None
    try:
        task = transport.next_task()
        if task is not None:
            transport.reply(task, answerer.answer(task))
    except NodeRefusedError:
        raise
    except HoldfastError as error:
        _log_place("a message was not answered", error)
        _reply_error(transport, task, error.code)
    except Exception as error:  # noqa: BLE001  # the door of this process: the coordinator must hear that it failed
        _log_place("a message failed", error)
        _reply_error(transport, task, INTERNAL)
    return task


def _is_over(transport: RoundTransport, run_id: int) -> bool:
    from holdfast.errors import NodeRefusedError, RoundError

    try:
        return transport.is_over(run_id)
    except NodeRefusedError:
        raise
    except RoundError as error:
        _log_place("could not ask for the run", error)
        return False


def _reply_error(transport: RoundTransport, task: RoundTask | None, code: str) -> None:
    from holdfast.errors import NodeRefusedError, RoundError

    if task is None:
        return
    try:
        transport.reply_error(task, code)
    except NodeRefusedError:
        raise
    except RoundError as error:
        _log_place("an error could not be reported", error)


def _beat(transport: RoundTransport, clock: Clock, ended: threading.Event) -> None:
    from holdfast.errors import RoundError

    while not clock.wait(ended, HEARTBEAT_S):
        try:
            transport.heartbeat()
        except RoundError as error:
            _log_place("a heartbeat was not taken", error)


def _log_place(what: str, error: BaseException) -> None:
    """The error's type and where in the code it came from; not its text."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
    logger.warning("%s: %s at %s", what, type(error).__name__, place)


def _log_crash(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    del kind, trace
    _log_place("the worker crashed", error)


if __name__ == "__main__":
    sys.exit(main())
