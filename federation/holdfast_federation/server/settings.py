"""The settings of a coordinator: `settings.toml` in its state folder < environment HOLDFAST_* < flags."""

from __future__ import annotations

from dataclasses import dataclass

from holdfast.errors import SettingsError
from holdfast.settings import setting


@dataclass(frozen=True, slots=True)
class CoordinatorSettings:
    """Addresses are host:port; port 0 takes any free one. The defaults are reachable from this machine only."""

    enrolment_listen: str = setting("127.0.0.1:7443", "listener for enrolment and renewal (server TLS)")
    device_listen: str = setting("127.0.0.1:7444", "listener for devices (client certificate required)")
    page_listen: str = setting("127.0.0.1:7480", "the read-only page (plain HTTP; keep it on loopback)")
    advertise_host: str = setting("", "host that tokens and devices are told; empty: the host listened on")
    check_in_s: float = setting(10.0, "how often devices ask what to do", minimum=0.1, maximum=86_400.0)
    page_window_s: float = setting(3_600.0, "how far back the page's figures reach", minimum=1.0, maximum=31_536_000.0)
    schedule: tuple[object, ...] = setting((), "[[schedule]] tables: federated runs that start by themselves")
    superlink: tuple[object, ...] = setting((), "[[superlink]] tables: other SuperLinks (name, address, certificate)")


def split_address(text: str, name: str) -> tuple[str, int]:
    """host:port, or [IPv6]:port, as its parts.

    Raises:
        SettingsError: it is something else.
    """
    host, separator, port = text.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise SettingsError(f"setting '{name}' is {text!r}; expected host:port, for example 127.0.0.1:7443")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """The parts as host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
