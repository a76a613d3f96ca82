"""Settings refuse to start with what they do not understand, and say which key, where, and what is allowed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import SettingsError
from holdfast.settings import load, setting


@dataclass(frozen=True, slots=True)
class Settings:
    listen: str = setting("127.0.0.1:0", "where")
    window_s: float = setting(60.0, "how long", minimum=0.1, maximum=100.0)
    threads: int = setting(1, "how many", minimum=1, maximum=8)
    insecure: bool = setting(False, "open")
    level: str = setting("info", "log", choices=("info", "debug"))
    tables: tuple[object, ...] = setting((), "tables")


GOOD = b'listen = "127.0.0.1:9"\nwindow_s = 5\nthreads = 2\n'

BAD_FILES: dict[str, tuple[bytes, str]] = {
    "unknown_key": (GOOD + b"treads = 2\n", "unknown setting 'treads'.*known settings: .*threads"),
    "unknown_table": (GOOD + b"[serving]\nlisten = 1\n", "unknown setting 'serving'"),
    "truncated_in_a_string": (GOOD[:12], "is not valid TOML"),
    "truncated_in_a_key": (GOOD[:30], "is not valid TOML"),
    "key_twice": (GOOD + GOOD, "is not valid TOML"),
    "json": (b'{"listen": 1}', "is not valid TOML"),
    "not_utf_8": (b'listen = "\xff\xfe"', "is not valid TOML"),
    "zero_bytes": (b"\0" * 50, "is not valid TOML"),
    "nested_without_end": (b"tables = " + b"[" * 50_000, "is not valid TOML"),
    "too_large": (b"#" * 2_000_000, "is larger than"),
    "wrong_type": (b'window_s = "60"', "'window_s' in .* must be a float, got '60'"),
    "number_for_a_text": (b"listen = 8080", "'listen' in .* must be a str"),
    "bool_for_a_number": (b"threads = true", "'threads' in .* must be a int, got True"),
    "below_its_range": (b"window_s = 0", "'window_s' in .* is 0.0; allowed: 0.1 .. 100.0"),
    "above_its_range": (b"threads = 9", "'threads' in .* is 9; allowed: 1 .. 8"),
    "not_a_number": (b"window_s = nan", "'window_s' in .* is nan; allowed"),
    "past_every_float": (b"window_s = 1" + b"0" * 400, "'window_s'"),
    "not_a_choice": (b'level = "loud"', r"'level' in .* is 'loud'; allowed: info \| debug"),
}


@pytest.mark.parametrize("defect", sorted(BAD_FILES))
def test_settings_file_with_a_defect_is_refused_with_what_is_allowed(tmp_path: Path, defect: str) -> None:
    data, text = BAD_FILES[defect]
    path = tmp_path / "settings.toml"
    path.write_bytes(data)

    with pytest.raises(SettingsError, match=text) as refused:
        load(Settings, path=path, environment={})

    assert "settings.toml" in str(refused.value)


def test_settings_file_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"absent\.toml cannot be read: No such file"):
        load(Settings, path=tmp_path / "absent.toml", environment={})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("HOLDFAST_WINDOW_S", "soon", "HOLDFAST_WINDOW_S='soon' is not a float"),
        ("HOLDFAST_THREADS", "0", "'threads' in HOLDFAST_THREADS is 0; allowed: 1 .. 8"),
        ("HOLDFAST_INSECURE", "maybe", "HOLDFAST_INSECURE='maybe' is not a bool"),
    ],
)
def test_variable_with_a_wrong_value_is_named(name: str, value: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load(Settings, environment={name: value})


def test_file_gives_way_to_variable_and_variable_to_flag(tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(b"window_s = 5\nthreads = 2\nlevel = 'debug'\n")

    got = load(
        Settings,
        path=path,
        environment={"HOLDFAST_WINDOW_S": "6", "HOLDFAST_THREADS": "3", "HOLDFAST_OF_ANOTHER": "x", "THREADS": "7"},
        flags={"threads": 4, "insecure": None},
    )

    assert got == Settings(window_s=6.0, threads=4, level="debug")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_settings_of_any_bytes_load_or_are_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(data)

    with contextlib.suppress(SettingsError):
        load(Settings, path=path, environment={})
