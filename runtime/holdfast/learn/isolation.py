"""Takes the network, and more than its share of the machine, away from the process that sees raw data.

Two independent walls: a network namespace of its own (without even a loopback that is up), and a seccomp filter that
refuses every socket except unix ones. A platform may refuse either; `isolate` says which stand, and the host decides
whether that is enough. A unix socket with a path works across network namespaces: it is the only way out.

Call it before any thread exists and before numpy is imported (a user namespace needs a single-threaded process).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import socket
import struct
from dataclasses import dataclass

from holdfast.inference.background import lower_process

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_NO_NEW_PRIVS = 38
PR_SET_SECCOMP = 22
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
SECCOMP_MODE_FILTER = 2
SIGKILL = 9
MAX_FILE_BYTES = 67_108_864  # 64 MiB: a worker writes next to nothing
MAX_OPEN_FILES = 256
EACCES = 13
EPERM = 1

# (AUDIT_ARCH_*, number of socket(2), number of io_uring_setup(2)); linux/audit.h and asm/unistd.h
ARCHITECTURES = {"x86_64": (0xC000003E, 41, 425), "aarch64": (0xC00000B7, 198, 425)}


@dataclass(frozen=True, slots=True)
class Isolation:
    """Which walls stand. `problem` says why one does not; empty if both do."""

    namespace: bool
    seccomp: bool
    problem: str = ""

    @property
    def has_no_network(self) -> bool:
        return self.namespace or self.seccomp


def isolate(*, memory_bytes: int) -> Isolation:
    """Give up the network, cap memory, files and core dumps, lower the priority, and die with the parent."""
    lower_process(os.getpid())  # first: a process that cannot be dumped may not write its own files of /proc
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _limit(resource.RLIMIT_AS, memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, MAX_FILE_BYTES)
    _limit(resource.RLIMIT_NOFILE, MAX_OPEN_FILES)
    namespace_problem = _leave_network(libc)
    seccomp_problem = _refuse_sockets(libc)
    problems = "; ".join(text for text in (namespace_problem, seccomp_problem) if text)
    return Isolation(namespace=not namespace_problem, seccomp=not seccomp_problem, problem=problems)


def can_reach(address: tuple[str, int]) -> bool:
    """Whether this process can open a connection to `address`: for a self-test after `isolate`."""
    try:
        with socket.create_connection(address, timeout=2.0):
            return True
    except OSError:
        return False


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    wanted = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(what, (wanted, wanted))


def _leave_network(libc: ctypes.CDLL) -> str:
    # root may not own a user namespace in a container, others need one: try the plain way first
    if libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        return ""
    return f"no network namespace ({os.strerror(ctypes.get_errno())})"


def _refuse_sockets(libc: ctypes.CDLL) -> str:
    numbers = ARCHITECTURES.get(platform.machine())
    if numbers is None:
        return f"no socket filter for {platform.machine()}"
    program = _filter(*numbers)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog { unsigned short len; struct sock_filter *filter; }
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(buffer)))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return "no socket filter (no_new_privs refused)"
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, header, 0, 0) != 0:
        return f"no socket filter ({os.strerror(ctypes.get_errno())})"
    return ""


def _filter(architecture: int, nr_socket: int, nr_io_uring: int) -> bytes:
    """Classic BPF over struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]} (seccomp(2)).

    Another architecture, the x32 numbers and io_uring are refused; socket(domain != AF_UNIX) is refused with EACCES.
    """
    load, jump_equal, jump_at_least, answer = 0x20, 0x15, 0x35, 0x06
    allow, refuse = 0x7FFF0000, 0x00050000
    steps = (
        (load, 0, 0, 4),
        (jump_equal, 0, 7, architecture),  # else: refuse
        (load, 0, 0, 0),
        (jump_at_least, 5, 0, 0x40000000),  # x32
        (jump_equal, 4, 0, nr_io_uring),
        (jump_equal, 0, 2, nr_socket),  # else: allow
        (load, 0, 0, 16),  # args[0]
        (jump_equal, 0, 1, socket.AF_UNIX),
        (answer, 0, 0, allow),
        (answer, 0, 0, refuse | EACCES),
    )
    return b"".join(struct.pack("@HBBI", *step) for step in steps)
