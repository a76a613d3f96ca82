"""Which route a path is: a tree of its segments, with the names that the path gives. Pure; no handlers of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import unquote

from holdfast.serving.route_table import Route

MAX_SEGMENTS = 8  # of a path: the longest route has seven

T = TypeVar("T")  # what answers a route


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What lies at a path: the handler of the asked method if there is one, and the methods that there are."""

    names: Mapping[str, str]
    methods: tuple[str, ...]
    route: Route | None
    handler: T | None


class RouteTree(Generic[T]):
    """One segment of the paths, and those below it. A segment that is written out goes before one that is a name."""

    def __init__(self) -> None:
        self._below: dict[str, RouteTree[T]] = {}
        self._named: tuple[str, RouteTree[T]] | None = None
        self._routes: dict[str, tuple[Route, T]] = {}

    def add(self, route: Route, handler: T) -> None:
        """What answers a route, from here on."""
        node = self
        for segment in route.template.strip("/").split("/"):
            if segment.startswith("{"):
                if node._named is None:
                    node._named = (segment.strip("{}"), RouteTree())
                node = node._named[1]
            else:
                node = node._below.setdefault(segment, RouteTree())
        node._routes[route.method] = (route, handler)

    def find(self, path: str, method: str) -> Found[T] | None:
        """What lies at a path; None if nothing does."""
        segments = path.strip("/").split("/", MAX_SEGMENTS)
        names: dict[str, str] = {}
        node = self._walk(segments, 0, names)
        if node is None:
            return None
        route, handler = node._routes.get("GET" if method == "HEAD" else method, (None, None))
        return Found(names, tuple(sorted(node._routes)), route, handler)

    def _walk(self, segments: list[str], at: int, names: dict[str, str]) -> RouteTree[T] | None:
        if at == len(segments):
            return self if self._routes else None
        below = self._below.get(segments[at])
        found = below._walk(segments, at + 1, names) if below is not None else None
        if found is None and self._named is not None and segments[at]:
            name, node = self._named
            found = node._walk(segments, at + 1, names)
            if found is not None:
                names[name] = unquote(segments[at])
        return found
