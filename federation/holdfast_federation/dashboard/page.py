"""The page: read-only, without scripts, every text escaped, and with headers that forbid what it does not use.

It reloads itself by a header that needs no script. It answers only to names that its operator may have typed, so that
a web site elsewhere cannot read it through the operator's browser.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from holdfast_federation.dashboard.view import Sources
from holdfast_federation.status import status_of

HERE = Path(__file__).parent
RELOAD_S = 5
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def page_app(sources: Sources, hosts: Sequence[str]) -> Starlette:
    """The ASGI application. `hosts`: names under which it answers; "*" for all."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(milliseconds=milliseconds, size=size, short=short, number=number)
    template = environment.get_template("page.html")
    style = (HERE / "static" / "page.css").read_text(encoding="utf-8")

    def render() -> str:
        snapshot = sources.snapshot()

        def age(utc_ns: int | None) -> str:
            return since(utc_ns, snapshot.utc_ns)

        return template.render(title=sources.title, page=snapshot, age=age)

    async def page(request: Request) -> Response:
        try:
            text = await run_in_threadpool(render)
        except Exception as error:  # noqa: BLE001  # the page's door; status_of logs what is not ours
            status = status_of(error)
            return PlainTextResponse(f"{status.code}: {status.text}\n", status.http, headers=HEADERS)
        return Response(text, media_type="text/html", headers={**HEADERS, "Refresh": str(RELOAD_S)})

    async def stylesheet(request: Request) -> Response:
        return Response(style, media_type="text/css", headers=HEADERS)

    routes = [Route("/", page, methods=["GET"]), Route("/page.css", stylesheet, methods=["GET"])]
    return Starlette(routes=routes, middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])


def since(utc_ns: int | None, now_utc_ns: int) -> str:
    """How long ago in words; "never" for None."""
    if utc_ns is None:
        return "never"
    seconds = max(0, now_utc_ns - utc_ns) // 1_000_000_000
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit} ago"
    return f"{seconds} s ago"


def milliseconds(seconds: float | None) -> str:
    """A duration in ms with three figures; a dash for None."""
    return "–" if seconds is None else f"{seconds * 1_000:.3g} ms"


def size(count: int) -> str:
    """Bytes in a unit that reads well."""
    value = float(count)
    for unit in _BYTE_UNITS[:-1]:
        if value < 1_024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1_024
    return f"{value:.1f} {_BYTE_UNITS[-1]}"


def short(digest: str) -> str:
    """The beginning of a digest, enough to tell two apart."""
    return digest[:12]


def number(value: int) -> str:
    """A whole number with thin spaces between thousands."""
    return f"{value:,}".replace(",", "\u202f")
