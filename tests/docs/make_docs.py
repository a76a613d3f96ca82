"""Rewrites the parts of the READMEs that are made from the code: `python -m tests.docs.make_docs` (or `make docs`).

A made part stands between `<!-- made: NAME -->` and `<!-- end: NAME -->`; everything else is written by hand. Nothing
here describes a thing a second time: captions are first docstring lines, settings and errors are the classes
themselves, commands are the entry points. `test_docs_made.py` fails while a README is behind the code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from holdfast import errors
from holdfast.cli.command import Command
from holdfast.settings import describe

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT, SUMMARY = ROOT / "pyproject.toml", ROOT / "benchmarks" / "results" / "summary.json"
SOURCE_OF = {"runtime": ROOT / "runtime" / "holdfast", "federation": ROOT / "federation" / "holdfast_federation"}
PACKAGE_OF = {"runtime": "holdfast", "federation": "holdfast_federation"}

CODEC_VALUES = 1_000_000  # the size of update that the table of codecs speaks of

_TREE_LINE = re.compile(r"[├└]── (\w+)\s*(.*)")
EXIT_LINE = re.compile(r"^(EXIT_\w+) = (\d+)(?:\s+# (.*))?$", re.MULTILINE)

Row = tuple[str, ...]


def caption(path: Path) -> str:
    """The first docstring line of a module, without its full stop; empty if it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].removesuffix(".")


def rooms(side: str) -> list[tuple[str, Path]]:
    """(name as shown, file with the caption) of every room: folders with code, then single modules."""
    source = SOURCE_OF[side]
    folders = [(f"{path.parent.name}/", path) for path in sorted(source.glob("*/__init__.py"))]
    modules = [(path.name, path) for path in sorted(source.glob("*.py")) if not path.name.startswith("__")]
    return folders + modules


def public_modules(side: str) -> Iterator[Path]:
    """Every module that people may read or import; generated code is left out."""
    for path in sorted(SOURCE_OF[side].rglob("*.py")):
        if not re.search(r"_pb2(_grpc)?\.py$", path.name):
            yield path


def settings_classes(side: str) -> list[type[object]]:
    """Every class of this side with a field declared by `setting(...)`."""
    found = []
    for path in public_modules(side):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(_is_setting(item) for item in node.body):
                found.append(getattr(importlib.import_module(module_name(side, path)), node.name))
    return found


def module_name(side: str, path: Path) -> str:
    """The import name of a file."""
    parts = path.relative_to(SOURCE_OF[side]).with_suffix("").parts
    return ".".join((PACKAGE_OF[side], *(part for part in parts if part != "__init__")))


def commands(side: str) -> list[tuple[str, Command]]:
    """(words after `holdfast`, command) of every entry point of this side."""
    table = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["entry-points"]["holdfast.commands"]
    found = []
    for name, target in sorted(table.items()):
        module, _, attribute = target.partition(":")
        if module.split(".")[0] == PACKAGE_OF[side]:
            found.append((name.replace(".", " "), getattr(importlib.import_module(module), attribute)))
    return found


def error_classes() -> list[type[errors.HoldfastError]]:
    """The tree of errors, by code."""

    def below(cls: type[errors.HoldfastError]) -> Iterator[type[errors.HoldfastError]]:
        yield cls
        for child in cls.__subclasses__():
            if child.__module__ == errors.__name__:
                yield from below(child)

    return sorted(set(below(errors.HoldfastError)), key=lambda cls: cls.code)


def error_meanings() -> dict[str, str]:
    """Class name to the words beside it in the tree that errors.py draws."""
    lines = (_TREE_LINE.search(line) for line in (errors.__doc__ or "").splitlines())
    return {match[1]: match[2] for match in lines if match}


def exit_codes() -> list[Row]:
    """(number, meaning) of every exit code of a command line, by number."""
    found: dict[int, str] = {}
    for source in SOURCE_OF.values():
        for path in sorted(source.glob("cli/*.py")):
            for name, number, meaning in EXIT_LINE.findall(path.read_text(encoding="utf-8")):
                found.setdefault(int(number), meaning or name.removeprefix("EXIT_").lower())
    return [(str(number), found[number]) for number in sorted(found)]


def decisions(side: str) -> list[tuple[str, Path]]:
    """(title, file) of every decision record of this side."""
    folder = ROOT / side / "decisions"
    return [(caption_of_decision(path), path) for path in sorted(folder.glob("*.md"))]


def caption_of_decision(path: Path) -> str:
    """Number and title: the first line of a record, without its mark."""
    return path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def table(head: Row, rows: list[Row]) -> str:
    """A Markdown table; cells may hold any text on one line."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _rooms(side: str) -> str:
    folder = SOURCE_OF[side].relative_to(ROOT / side)
    return table(("room", "what it is for"), [(f"[`{name}`]({folder}/{name})", caption(p)) for name, p in rooms(side)])


def _settings(side: str) -> str:
    parts = []
    for cls in settings_classes(side):
        parts.append(f"`{cls.__module__}.{cls.__name__}`\n")
        head = ("setting", "default", "allowed", "what it is")
        parts.append(table(head, [(f"`{key}`", f"`{default}`", *rest) for key, default, *rest in describe(cls)]) + "\n")
    return "\n".join(parts).rstrip("\n")


def _commands(side: str) -> str:
    return table(("command", "what it does"), [(f"`holdfast {name}`", item.help) for name, item in commands(side)])


def _decisions(side: str) -> str:
    return "\n".join(f"- [{title}](decisions/{path.name})" for title, path in decisions(side))


def _errors(_: str) -> str:
    meanings = error_meanings()
    rows = [
        (cls.code, f"`{cls.__name__}`", f"`{cls.__base__.__name__}`", meanings.get(cls.__name__, ""))
        for cls in error_classes()
        if cls is not errors.HoldfastError and cls.__base__ is not None
    ]
    return table(("code", "error", "kind of", "meaning"), rows)


def _gradients(_: str) -> str:
    from holdfast.autodiff.reading import EXPANDED
    from holdfast.autodiff.registry import FAMILIES, LOSSES, OPTIMIZERS

    rows = [
        (f"`{rule.operator}`", f"`{rule.formula}`", f"[`{name}`](holdfast/autodiff/{name}.py)")
        for name, family in ((family.__name__.rpartition(".")[2], family) for family in FAMILIES)
        for rule in family.RULES
    ]
    written = f"Written out by their definitions first: {', '.join(f'`{name}`' for name in EXPANDED)}."
    choices = {"Losses": LOSSES, "Optimizers": OPTIMIZERS}
    made = [f"{kind}: {', '.join(_with_settings(known))}." for kind, known in choices.items()]
    counted = f"{len(rows)} operators have a rule."
    return "\n\n".join([table(("operator", "gradient", "where"), sorted(rows)), counted, written, *made])


def _corpus(_: str) -> str:
    from tests.docs.corpus_table import HEAD, findings, rows, summary

    found = findings()
    return summary(found) + "\n\n" + table(HEAD, rows(found))


def _with_settings(known: Mapping[str, Callable[..., object]]) -> list[str]:
    """Each name with what can be set behind a colon, and its default."""
    found = []
    for name, make in known.items():
        settings = [f"{key}={each.default}" for key, each in inspect.signature(make).parameters.items()]
        found.append(f"`{name}`" + (f" (`{', '.join(settings)}`)" if settings else ""))
    return found


def _codecs(_: str) -> str:
    from holdfast.update.codecs import CODECS, LEGALITY

    aggregations = sorted({aggregation for _, aggregation in LEGALITY}, reverse=True)
    rows = [
        (
            f"`{name}`",
            f"{4 * CODEC_VALUES / codec.encoded_size(CODEC_VALUES):.3g}",
            f"{codec.norm_growth:.3g}",
            *(LEGALITY.get((name, aggregation), "no") for aggregation in aggregations),
        )
        for name, codec in CODECS.items()
    ]
    return table(("codec", "times smaller", "norm may grow", *(f"`{each}`" for each in aggregations)), rows)


def _exit_codes(_: str) -> str:
    return table(("exit code", "meaning"), exit_codes())


def _peers(_: str) -> str:
    from benchmarks.peers_table import peers_table

    return peers_table(json.loads(SUMMARY.read_text(encoding="utf-8")))


def _figures(_: str) -> str:
    from benchmarks.harness import summary_table

    return summary_table(json.loads(SUMMARY.read_text(encoding="utf-8")))


MADE: dict[str, dict[str, Callable[[str], str]]] = {
    "runtime": {
        "rooms": _rooms,
        "commands": _commands,
        "exit-codes": _exit_codes,
        "settings": _settings,
        "errors": _errors,
        "gradients": _gradients,
        "corpus": _corpus,
        "codecs": _codecs,
        "decisions": _decisions,
    },
    "federation": {"rooms": _rooms, "commands": _commands, "settings": _settings, "decisions": _decisions},
    "benchmarks": {"figures": _figures, "peers": _peers},
    ".": {"peers": _peers},
}


def made(folder: str) -> tuple[Path, str]:
    """(the README of a folder, the text it should have)."""
    path = ROOT / folder / "README.md"
    text = path.read_text(encoding="utf-8")
    for name, make in MADE[folder].items():
        start, end = f"<!-- made: {name} -->", f"<!-- end: {name} -->"
        before, found_start, rest = text.partition(start)
        _, found_end, after = rest.partition(end)
        if not found_start or not found_end:
            raise SystemExit(f"{path} lacks the markers {start} and {end}")
        text = f"{before}{start}\n{make(folder)}\n{end}{after}"
    return path, text


def main(folders: Sequence[str] = tuple(MADE)) -> int:
    """Rewrite what is behind the code; says which files changed."""
    for folder in folders:
        path, text = made(folder)
        if path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"rewrote {path.relative_to(ROOT)}")
    return 0


def _is_setting(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.AnnAssign) else None
    return isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "setting"


if __name__ == "__main__":
    sys.exit(main())
