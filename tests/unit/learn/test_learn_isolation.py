"""The worker's walls, tried from inside a process that has just put them up."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import textwrap

import pytest

PROBE = textwrap.dedent(
    """
    import json, os, socket, sys, threading
    from holdfast.learn import isolation
    which, port, path = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    libc = __import__("ctypes").CDLL(None, use_errno=True)
    if which == "both":
        walls = isolation.isolate(memory_bytes=4 * 2**30)
        up = walls.has_no_network
    elif which == "namespace":
        up = not isolation._leave_network(libc)
    elif which == "seccomp":
        up = not isolation._refuse_sockets(libc)
    else:
        up = False
    made = []
    for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
        try:
            socket.socket(family, socket.SOCK_RAW if family == socket.AF_NETLINK else socket.SOCK_DGRAM).close()
            made.append(family.name)
        except OSError:
            pass
    agent = socket.socket(socket.AF_UNIX)
    agent.connect(path)
    threading.Thread(target=lambda: None).start()
    print(json.dumps({"up": up, "reached": isolation.can_reach(("127.0.0.1", port)), "made": made}))
    """
)


def probe(which: str, tmp_path) -> dict[str, object]:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as agent:
        agent.bind(str(tmp_path / "agent.sock"))
        agent.listen()
        command = [sys.executable, "-c", PROBE, which, str(listener.getsockname()[1]), str(tmp_path / "agent.sock")]
        done = subprocess.run(command, capture_output=True, timeout=60, check=True, text=True)
    return json.loads(done.stdout)


def test_without_walls_the_probe_reaches_the_listener(tmp_path):
    found = probe("none", tmp_path)

    assert found["reached"]
    assert "AF_INET" in found["made"]


@pytest.mark.parametrize("which", ["namespace", "seccomp", "both"])
def test_each_wall_alone_stops_every_way_out_but_the_agents_socket(which: str, tmp_path):
    found = probe(which, tmp_path)
    if which != "both" and not found["up"]:
        pytest.skip(f"this platform refuses the wall {which}")

    assert found["up"], "at least one wall must stand on every platform that the tests run on"
    assert not found["reached"]
    if which != "namespace":
        assert found["made"] == []
