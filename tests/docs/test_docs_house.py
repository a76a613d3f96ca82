"""Nothing of a developer's own machine, and no package registry, is in what we hand out."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from tests.docs import make_docs

ROOT = make_docs.ROOT
MAX_BYTES = 2_000_000  # larger files are data; none is tracked today

# written so that this file does not find itself
FORBIDDEN = {
    "a home folder": re.compile(r"(?<![\w.-])/(?:home|Users)" + r"/[a-z]\w*|(?<![\w.-])/root" + r"/\w"),
    "a folder of one machine": re.compile(r"(?<![\w.-])/(?:work" + r"|workspace|mnt/c)/\w"),
    "a temporary folder": re.compile(r"(?<![\w.-])/(?:var/)?tmp" + r"/\w"),
    "a package registry": re.compile(r"pypi\." + r"org|python" + r"hosted|npm" + r"js|crates\." + r"io|jsr\." + r"io"),
    "an unfinished part": re.compile(r"\b(?:TO" + r"DO|FIX" + r"ME|XX" + r"X)\b"),
}


def tracked() -> list[Path]:
    """The files that git knows, or would take; without git, everything but what was built."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout: there is no list of the files that are handed out")
    return [ROOT / name for name in names if name and (ROOT / name).is_file()]


def findings(text: str) -> list[str]:
    return [f"{what}: {match[0]}" for what, pattern in FORBIDDEN.items() for match in pattern.finditer(text)]


def test_docs_house_search_finds_what_it_is_for() -> None:
    planted = ["/home" + "/ada/x", "see /root" + "/x", "open /work" + "/x", "https://pypi." + "org/simple", "TO" + "DO"]

    assert [len(findings(text)) for text in planted] == [1] * len(planted)
    assert findings("https://example.org/home/page and a/work" + "/x and src/root" + "/x") == []


def test_docs_house_nothing_of_our_own_machines_is_handed_out() -> None:
    found = {}
    for path in tracked():
        data = path.read_bytes()
        if path.name == "LICENSE" or b"\0" in data or len(data) > MAX_BYTES:
            continue
        if hits := findings(data.decode("utf-8", errors="replace")):
            found[str(path.relative_to(ROOT))] = hits

    assert found == {}


def test_docs_house_no_large_file_is_handed_out() -> None:
    assert [str(path) for path in tracked() if path.stat().st_size > MAX_BYTES] == []
