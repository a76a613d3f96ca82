"""Unknown errors are caught at the doors only, and each place that is one says so (the style of the house)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [*ROOT.glob("runtime/holdfast/**/*.py"), *ROOT.glob("federation/holdfast_federation/**/*.py")]
BROAD = {"Exception", "BaseException"}
WORDS = ("door", "edge")  # one of them stands in the comment beside the `except`


def broad_handlers(source: str) -> Iterator[ast.ExceptHandler]:
    """Every `except` that catches what nobody foresaw."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        if any(each is None or (isinstance(each, ast.Name) and each.id in BROAD) for each in caught):
            yield node


def passes_on(handler: ast.ExceptHandler) -> bool:
    """Whether it ends in `raise`: it tidies up, and catches nothing."""
    last = handler.body[-1]
    return isinstance(last, ast.Raise) and last.exc is None


def offenders(source: str) -> list[int]:
    """Lines of broad handlers that keep an error and do not say that they are a door."""
    lines = source.splitlines()
    return [
        handler.lineno
        for handler in broad_handlers(source)
        if not passes_on(handler) and not any(word in lines[handler.lineno - 1].partition("#")[2] for word in WORDS)
    ]


def test_unknown_errors_are_caught_at_doors_only() -> None:
    found = {
        str(path.relative_to(ROOT)): lines for path in SOURCES if (lines := offenders(path.read_text(encoding="utf-8")))
    }

    assert not found, "say in a comment beside the except which door it is, or name the errors it is for"


@pytest.mark.parametrize(
    ("handler", "is_fine"),
    [
        ("except Exception: pass", False),
        ("except: pass", False),
        ("except (OSError, BaseException): pass", False),
        ("except Exception:  # the rpc edge\n    pass", True),
        ("except BaseException:\n    close()\n    raise", True),
        ("except BaseException as e:\n    raise ValueError() from e", False),
        ("except OSError: pass", True),
    ],
)
def test_check_tells_them_apart(handler: str, is_fine: bool) -> None:
    assert (not offenders(f"try:\n    work()\n{handler}\n")) is is_fine
