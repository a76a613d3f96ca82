"""The C++ client: built on first use from its one source file, driven over its command line.

It sends messages made beforehand, a fixed number in flight, and checks every status and every answer. Its options and
what it prints stand in `README.md`.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

FOLDER = Path(__file__).parent / "cpp"
INSTALL = "run tests/conformance/install.sh (Debian: apt install g++ make pkg-config libgrpc++-dev)"
BUILD_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 300.0


class ClientMissingError(RuntimeError):
    """The client cannot be built here; the text says what to install."""


@dataclass(frozen=True, slots=True)
class CppFigures:
    """What the client printed.

    Attributes:
        wrong_answers: Answers with status OK that were empty or not the expected bytes; counted in `errors` too.
        statuses: Calls that ended with another status than OK, by the status's number.
        client_cpu_s: CPU time of the client's own process, all threads, while the counted calls ran.
    """

    requests: int
    errors: int
    wrong_answers: int
    statuses: dict[str, int]
    first_error: str
    wall_s: float
    client_cpu_s: float
    p50_us: float
    p99_us: float


@dataclass(frozen=True, slots=True)
class CppOptions:
    """How to send. `arguments` are further options of the program, as `("--gzip",)`; `prefix` goes before it."""

    requests: int = 1_000
    in_flight: int = 32
    channels: int = 1
    warm_up: int = 0
    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = field(default=())  # as ("taskset", "-c", "1")


def build() -> Path:
    """The program, built if its source is newer. Raises ClientMissingError."""
    try:
        subprocess.run(["make", "-C", str(FOLDER)], capture_output=True, text=True, check=True, timeout=BUILD_TIMEOUT_S)
    except FileNotFoundError as error:
        raise ClientMissingError(f"the C++ client needs make: {INSTALL}") from error
    except subprocess.CalledProcessError as error:
        raise ClientMissingError(f"the C++ client does not build: {INSTALL}\n{error.stderr[-2_000:]}") from error
    return FOLDER / "build" / "infer_client"


def write_messages(path: Path, messages: Sequence[bytes]) -> None:
    """The client's file of messages: each one as its length (4 bytes, little-endian) and its bytes."""
    path.write_bytes(b"".join(len(message).to_bytes(4, "little") + message for message in messages))


def run(
    target: str,
    messages: Sequence[bytes],
    expected: Sequence[bytes] = (),
    options: CppOptions | None = None,
    on_warm: Callable[[], None] | None = None,
) -> CppFigures:
    """Send the messages in turn until the number of requests is reached.

    Args:
        target: "HOST:PORT" or "unix:/path".
        messages: Request messages, without the 5 bytes that gRPC puts before them.
        expected: The answer to each message; none: every answer must hold at least one byte.
        on_warm: Called after the warm-up and before the first counted call: the place to read a server's CPU time.
    """
    chosen = options or CppOptions()
    with (
        _command(target, messages, expected, chosen) as command,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if process.stdout.readline().strip() == "ready":
                if on_warm is not None:
                    on_warm()
                told, complaint = process.communicate("\n", timeout=RUN_TIMEOUT_S)
            else:
                told, complaint = process.communicate(timeout=RUN_TIMEOUT_S)
        finally:
            process.kill()
    if not told.startswith("{"):
        raise RuntimeError(f"the C++ client failed: {complaint.strip()}")
    return CppFigures(**json.loads(told))


@contextmanager
def _command(
    target: str, messages: Sequence[bytes], expected: Sequence[bytes], options: CppOptions
) -> Iterator[list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        bodies, answers = Path(folder, "bodies"), Path(folder, "answers")
        write_messages(bodies, messages)
        command = [*options.prefix, str(build()), "--target", target, "--bodies", str(bodies), "--gate"]
        if expected:
            write_messages(answers, expected)
            command += ["--expected", str(answers)]
        for name in ("requests", "in_flight", "channels", "warm_up"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        yield [*command, *options.arguments]
