"""What the demonstration says while it works: chapters, steps with their time, and facts. On stderr with `--json`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from holdfast.clock import Clock


class Narrator:
    """Prints for a person. Facts are plain text, so that a log of it reads well too."""

    def __init__(self, clock: Clock, *, on_stderr: bool) -> None:
        self._console = Console(stderr=on_stderr, highlight=False, soft_wrap=True)
        self._clock = clock
        self._start_s = clock.monotonic_s()

    def heading(self, title: str) -> None:
        self._console.print(f"\n[bold]{title}[/bold]")

    def chapter(self, number: int, title: str) -> None:
        self.heading(f"{number}. {title}")

    def fact(self, text: str) -> None:
        self._console.print(f"   {text}", markup=False)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show that `text` is being done, and how long it took."""
        began_s = self._clock.monotonic_s()
        with self._console.status(f"{text} ...", spinner="line"):
            yield
        took_s = self._clock.monotonic_s() - began_s
        self._console.print(f"   {text}  ({took_s:.1f} s)", markup=False)

    def check(self, text: str, *, holds: bool) -> None:
        mark = "[green]holds[/green]" if holds else "[red]FAILS[/red]"
        self._console.print(f"   {mark}  ", end="")
        self._console.print(text, markup=False)

    @property
    def elapsed_s(self) -> float:
        return self._clock.monotonic_s() - self._start_s
