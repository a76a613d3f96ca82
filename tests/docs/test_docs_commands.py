"""What the documents tell people to type exists: commands with these flags, make targets, files.

Commands are parsed with the program's own parser, never run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.docs import make_docs

from holdfast.cli.main import build_parser

ROOT = make_docs.ROOT
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "runtime/*.md", "federation/*.md", "protos/*.md", "benchmarks/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
)
PARTS_OF_THE_TREE = ("runtime", "federation", "protos", "tests", "benchmarks", "examples")

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"\s+#\s.*$|\s{3,}\S.*$")
_SHELL_END = {"|", ">", "<", "&", "&&", ";", "||", "2>"}
_MAKE = re.compile(r"`make ([a-z-]+)")
_PATH = re.compile(rf"`((?:{'|'.join(PARTS_OF_THE_TREE)})/[\w./*-]*)`")
_LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def shell_lines(text: str) -> Iterator[str]:
    """The lines of every `sh` block, continuation lines joined."""
    for language, block in _FENCE.findall(text):
        if language == "sh":
            yield from joined(block).splitlines()


def joined(text: str) -> str:
    """Lines that go on after a backslash as one line."""
    return re.sub(r"\\\n\s*", " ", text)


def words_of(line: str) -> list[str]:
    """The words of one command up to a pipe or redirection, without comments."""
    words = []
    for word in shlex.split(_COMMENT.sub("", line.strip())):
        if word in _SHELL_END:
            break
        words.append(word)
    return words


def commands_in(lines: Iterator[str]) -> list[list[str]]:
    """The arguments of every `holdfast ...`, however it is started."""
    found = []
    for line in lines:
        words = words_of(line) if "holdfast" in line else []
        if words and words[0].rpartition("/")[2] == "holdfast":
            found.append(words[1:])
    return found


def examples_of_help() -> list[tuple[str, list[str]]]:
    """(command, arguments) of every example line that a `--help` teaches with."""
    found = []
    for side in make_docs.SOURCE_OF:
        for name, command in make_docs.commands(side):
            lines = joined(command.description).splitlines()
            examples = (line for line in lines if line.startswith("  holdfast "))
            found += [(name, arguments) for arguments in commands_in(examples)]
    return found


def parse(arguments: list[str]) -> None:
    """Fails unless the program would take these arguments."""
    try:
        parsed = build_parser(arguments).parse_args(arguments)
    except SystemExit as refused:
        if "--help" in arguments or "--version" in arguments:
            return
        pytest.fail(f"holdfast {shlex.join(arguments)}: not a command line that holdfast takes (exit {refused.code})")
    assert getattr(parsed, "command", None) is not None, f"holdfast {shlex.join(arguments)} is only a group"


def test_docs_parser_finds_a_wrong_flag() -> None:
    with pytest.raises(pytest.fail.Exception):
        parse(["serve", "model.onnx", "--no-such-flag"])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_commands_of_documents_exist(path: Path) -> None:
    for arguments in commands_in(shell_lines(path.read_text(encoding="utf-8"))):
        parse(arguments)


def test_docs_examples_of_help_texts_exist() -> None:
    examples = examples_of_help()

    for _, arguments in examples:
        parse(arguments)
    assert len(examples) >= 6


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_make_targets_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = set(_MAKE.findall(text)) | {
        words[1] for line in shell_lines(text) if (words := words_of(line))[:1] == ["make"] and len(words) > 1
    }

    assert named - targets == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_docs_files_that_are_named_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    missing = [name for name in _PATH.findall(text) if not list(ROOT.glob(name.rstrip("/")))]
    missing += [name for name in _LINK.findall(text) if not (path.parent / name.partition("#")[0]).exists()]

    assert missing == []


def test_docs_readme_names_the_commands_of_the_house() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    lines = list(shell_lines(text))
    assert "make demo" in " ".join(lines)
    assert "make test" in " ".join(lines)
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
