from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from starlette.applications import Starlette

from holdfast.clock import SystemClock
from holdfast_federation.dashboard.page import milliseconds, page_app, short, since, size
from holdfast_federation.dashboard.view import (
    DeviceRow,
    LedgerRow,
    ModelRow,
    RefusalRow,
    RoundRow,
    ServedRow,
    Sources,
)
from holdfast_federation.server.web import WebServer, listen_tcp

NOW_NS = 1_790_000_000_000_000_000
EVIL = "<script>alert('x')</script>\"'&"
HOSTS = ("127.0.0.1", "localhost")

Get = Callable[..., tuple[int, dict[str, str], str]]


def sources(text: str = "plain") -> Sources:
    """Rows whose every text is `text`."""
    return Sources(
        title=text,
        now_utc_ns=lambda: NOW_NS,
        devices=lambda: [
            DeviceRow(text, text, text, "online", NOW_NS - 5_000_000_000, 1_234, {text: text}, {text: 2_048}),
            DeviceRow("d2", "two", "south", "silent", None, 0),
        ],
        served=lambda: [
            ServedRow(text, text, 2, 1_000, 3, 0.001234, 0.0123, 0.123),
            ServedRow("", "", 1, 0, 0, None, None, None),
        ],
        ledger=lambda: LedgerRow(text, 42, "ab" * 32),
        refusals=lambda: [RefusalRow(text, text, text, 2, text, text, NOW_NS)],
        models=lambda: [ModelRow(text, text, text, text, text, 2)],
        rounds=lambda: [RoundRow(text, text, text, 1, 8, text, 3, 1, text)],
    )


@pytest.fixture
def serve() -> Iterator[Callable[[Starlette], Get]]:
    servers: list[WebServer] = []

    def start(app: Starlette) -> Get:
        listening = listen_tcp("127.0.0.1:0", "page_listen")
        port = listening.getsockname()[1]
        server = WebServer("page", app, listening, SystemClock())
        server.start()
        servers.append(server)

        def get(path: str = "/", method: str = "GET", host: str = "") -> tuple[int, dict[str, str], str]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request(method, path, headers={"Host": host} if host else {})
            response = connection.getresponse()
            text = response.read().decode()
            connection.close()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, text

        return get

    yield start
    for server in servers:
        server.stop()


class Elements(HTMLParser):
    """Names of all elements, and of all attributes that could carry script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on") or name == "style"]


def test_page_shows_every_section(serve: Callable[[Starlette], Get]) -> None:
    status, headers, text = serve(page_app(sources("ward-3"), HOSTS))()

    assert status == 200
    assert headers["content-type"].startswith("text/html")
    for piece in ("ward-3", "1.23 ms", "dropped windows", "2.0 KiB", "5 s ago", "never", "1 / 8"):
        assert piece in text, piece


def test_empty_fleet_says_what_to_do(serve: Callable[[Starlette], Get]) -> None:
    empty = Sources("t", lambda: NOW_NS, tuple, tuple, lambda: LedgerRow("o", 0, ""))

    _, _, text = serve(page_app(empty, HOSTS))()

    for piece in ("coordinator token", "No model has been published", "No federated run", "No window"):
        assert piece in text


def test_texts_from_devices_are_escaped(serve: Callable[[Starlette], Get]) -> None:
    _, _, text = serve(page_app(sources(EVIL), HOSTS))()

    elements = Elements(text)
    assert "script" not in elements.names
    assert "alert(&#39;x&#39;)" in text


def test_page_needs_and_allows_no_script(serve: Callable[[Starlette], Get]) -> None:
    _, headers, text = serve(page_app(sources(), HOSTS))()

    elements = Elements(text)
    assert "script" not in elements.names
    assert elements.handlers == []
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


def test_stylesheet_is_served_from_here(serve: Callable[[Starlette], Get]) -> None:
    get = serve(page_app(sources(), HOSTS))

    status, headers, text = get("/page.css")

    assert (status, headers["content-type"].split(";")[0]) == (200, "text/css")
    assert "http" not in text  # nothing is fetched from elsewhere


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_page_only_reads(serve: Callable[[Starlette], Get], method: str) -> None:
    assert serve(page_app(sources(), HOSTS))("/", method)[0] == 405


def test_other_host_names_are_refused(serve: Callable[[Starlette], Get]) -> None:
    get = serve(page_app(sources(), HOSTS))

    assert get(host="evil.example")[0] == 400
    assert get(host="localhost:1234")[0] == 200


def test_broken_source_is_an_internal_error_without_details(serve: Callable[[Starlette], Get]) -> None:
    def broken() -> tuple[DeviceRow, ...]:
        raise KeyError("secret detail")

    status, _, text = serve(page_app(replace(sources(), devices=broken), HOSTS))()

    assert status == 500
    assert "internal error (id " in text
    assert "secret detail" not in text


@pytest.mark.parametrize(
    ("seconds", "said"), [(0, "0 s ago"), (59, "59 s ago"), (60, "1 min ago"), (7_200, "2 h ago"), (200_000, "2 d ago")]
)
def test_age_is_told_in_words(seconds: int, said: str) -> None:
    assert since(NOW_NS - seconds * 1_000_000_000, NOW_NS) == said


def test_numbers_are_told_in_words() -> None:
    assert since(NOW_NS + 5, NOW_NS) == "0 s ago"  # a device's clock may be ahead
    assert (milliseconds(None), milliseconds(0.0012344)) == ("–", "1.23 ms")
    assert (size(0), size(1_023), size(1_536), size(2**50)) == ("0 B", "1023 B", "1.5 KiB", "1024.0 TiB")
    assert short("ab" * 32) == "abababababab"
