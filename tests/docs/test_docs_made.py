"""The made parts of the READMEs are what the code says now, and what they are made from is complete."""

from __future__ import annotations

import pytest
from tests.docs import make_docs

MAX_DECISION_LINES = 60
SIDES = ("runtime", "federation")


@pytest.mark.parametrize("folder", sorted(make_docs.MADE))
def test_docs_made_parts_are_fresh(folder: str) -> None:
    path, expected = make_docs.made(folder)

    assert path.read_text(encoding="utf-8") == expected, "run: make docs"


@pytest.mark.parametrize("side", SIDES)
def test_docs_every_public_module_has_a_caption(side: str) -> None:
    silent = [str(path) for path in make_docs.public_modules(side) if not make_docs.caption(path)]

    assert silent == []


@pytest.mark.parametrize("side", SIDES)
def test_docs_captions_fit_one_line(side: str) -> None:
    broken = {
        str(path): make_docs.caption(path)
        for path in make_docs.public_modules(side)
        if make_docs.caption(path).endswith((",", ";", " and", " the", " of"))
    }

    assert broken == {}


@pytest.mark.parametrize("side", SIDES)
def test_docs_every_room_is_on_the_map(side: str) -> None:
    source = make_docs.SOURCE_OF[side]
    text = (make_docs.ROOT / side / "README.md").read_text(encoding="utf-8")
    rooms = {path.name for path in source.iterdir() if path.is_dir() and list(path.glob("*.py"))}

    assert {room for room in rooms if f"`{room}/`" not in text} == set()


@pytest.mark.parametrize("side", SIDES)
def test_docs_every_decision_is_in_the_index_and_short(side: str) -> None:
    folder = make_docs.ROOT / side / "decisions"
    text = (make_docs.ROOT / side / "README.md").read_text(encoding="utf-8")
    files = sorted(folder.glob("*.md"))

    assert [path.name for path in files if f"(decisions/{path.name})" not in text] == []
    assert {p.name: n for p in files if (n := len(p.read_text("utf-8").splitlines())) > MAX_DECISION_LINES} == {}
    assert [path.name for path in files if not make_docs.caption_of_decision(path)] == []
    numbers = [path.name[:4] for path in files]
    assert len(set(numbers)) == len(numbers), "two decisions with one number"


def test_docs_every_error_is_drawn_and_every_code_is_its_own() -> None:
    classes = make_docs.error_classes()
    drawn = set(make_docs.error_meanings()) | {"HoldfastError"}

    assert {cls.__name__ for cls in classes} == drawn
    assert len({cls.code for cls in classes}) == len(classes)


def test_docs_every_setting_has_help() -> None:
    for side in SIDES:
        for cls in make_docs.settings_classes(side):
            silent = [key for key, _, _, text in make_docs.describe(cls) if not text]

            assert silent == [], cls.__name__


def test_docs_exit_codes_have_one_meaning_each() -> None:
    found: dict[str, set[str]] = {}
    for source in make_docs.SOURCE_OF.values():
        for path in source.glob("cli/*.py"):
            for name, number, _ in make_docs.EXIT_LINE.findall(path.read_text(encoding="utf-8")):
                found.setdefault(number, set()).add(name)

    assert {number: names for number, names in found.items() if len(names) > 1} == {}
    assert {"0", "1", "2", "130"} <= set(found)
