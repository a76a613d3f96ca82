"""What a process costs with its children: CPU time and memory, read from /proc; and where it runs.

The server under measurement and the in-process loop beside it run on the first core that this process may use, the
generator on the last one. On a machine with one core they share it, and only CPU time means anything.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

SERVER_CORE, CLIENT_CORE = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
END_S = 10.0
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \S+ *(.*)")
_SIZE = re.compile(r"(\w+): +([0-9]+) kB")


def tree(pid: int) -> list[int]:
    """A process and everything below it."""
    found = [pid]
    for task in _tasks(pid):
        for child in _read(task / "children").split():
            found += tree(int(child))
    return found


def cpu_ns(pid: int) -> int:
    """CPU time of a process and its children, all threads alive (proc(5), schedstat: the first field)."""
    return sum(int((_read(task / "schedstat") or "0").split()[0]) for each in tree(pid) for task in _tasks(each))


def pss_mb(pid: int) -> float:
    """Memory of a process and its children in MB: what n processes share counts a nth for each (proc(5), Pss).

    But for the files of this Python and its packages: this very process maps them too, which would make a server look
    smaller than it is on a device; of those only the processes below `pid` count as sharers.
    """
    processes = [_mappings(each) for each in tree(pid)]
    kib = 0.0
    for mappings in processes:
        for path, sizes in mappings:
            if path.startswith((sys.prefix, sys.base_prefix)):
                sharers = sum(any(path == other for other, _ in each) for each in processes)
                kib += sizes["Private_Clean"] + sizes["Private_Dirty"]
                kib += (sizes["Shared_Clean"] + sizes["Shared_Dirty"]) / sharers
            else:
                kib += sizes["Pss"]
    return kib * 1024 / 1e6


def _mappings(pid: int) -> list[tuple[str, dict[str, int]]]:
    """(path or empty, sizes in KiB by name) of every mapping."""
    found: list[tuple[str, dict[str, int]]] = []
    for line in _read(Path(f"/proc/{pid}/smaps")).splitlines():
        if start := _MAPPING.match(line):
            found.append((start[1], {}))
        elif size := _SIZE.match(line):
            found[-1][1][size[1]] = int(size[2])
    return found


@contextmanager
def started(
    command: Sequence[str],
    cores: int | frozenset[int],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """A process on one core or some, with pipes to its input and from its output; ended with its children."""
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=cwd,
        start_new_session=True,
    ) as process:
        os.sched_setaffinity(process.pid, {cores} if isinstance(cores, int) else cores)
        try:
            yield process
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(END_S)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # its session, for peers that leave processes behind


def signal_tree(pid: int, number: signal.Signals) -> None:
    """Send a signal to a process and its children."""
    for each in tree(pid):
        os.kill(each, number)


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread on one core for a while."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:  # it ended meanwhile
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii")
    except OSError:  # a thread that ended meanwhile
        return ""
