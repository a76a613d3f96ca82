"""killed_while_appending: a journal whose writer dies at any moment has no gap and has lost nothing it had promised."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from tests.fakes.clock import FakeClock
from tests.fakes.journals import open_journal, read_chain

from holdfast.trust.keys import PrivateKey

KILLS = 12
APPENDER = """
import sys
from pathlib import Path
from holdfast.trust.keys import PrivateKey
from tests.fakes.clock import FakeClock
from tests.fakes.journals import make_window, open_journal

folder = Path(sys.argv[1])
journal = open_journal(folder / "outbox.db", PrivateKey.from_pem((folder / "key").read_bytes()), FakeClock(),
                       max_bytes=int(sys.argv[2]))
while True:
    sys.stdout.write(f"{journal.append(make_window())}\\n")
    sys.stdout.flush()
"""


def test_killed_while_appending(tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    key = PrivateKey.generate("ed25519")
    (tmp_path / "key").write_bytes(key.to_pem())
    promised = 0

    for kill in range(KILLS):
        promised = max(promised, append_until_killed(tmp_path, chance.randrange(1, 60), max_bytes=10**9))

        journal = open_journal(tmp_path / "outbox.db", key, FakeClock())
        reports = read_chain(journal.pending(limit=10**6, max_bytes=10**9), key.public_key)
        journal.close()
        where = f"seed {seed}, kill {kill}"
        assert [report.seq for report in reports] == list(range(1, len(reports) + 1)), where
        assert len(reports) >= promised, where


def test_killed_while_dropping(tmp_path: Path) -> None:
    # a small bound: nearly every append also replaces records by a tombstone
    seed = random.SystemRandom().randrange(2**32)
    chance = random.Random(seed)
    key = PrivateKey.generate("ed25519")
    (tmp_path / "key").write_bytes(key.to_pem())
    promised = 0

    for kill in range(KILLS // 2):
        promised = max(promised, append_until_killed(tmp_path, chance.randrange(1, 90), max_bytes=6_000))

        # opened without `pending`, which would mark the records as handed out
        journal = open_journal(tmp_path / "outbox.db", key, FakeClock(), max_bytes=6_000)
        assert journal.head().seq >= promised, f"seed {seed}, kill {kill}"
        journal.close()
    journal = open_journal(tmp_path / "outbox.db", key, FakeClock())
    reports = read_chain(journal.pending(limit=10**6), key.public_key)
    journal.close()
    assert reports[-1].seq >= promised
    assert any(report.tombstone for report in reports)


def append_until_killed(folder: Path, appends: int, *, max_bytes: int) -> int:
    """Kill -9 an appending child after it told of `appends` records; returns the last number it promised."""
    roots = [str(Path(__file__).parents[2]), *sys.path]
    child = subprocess.Popen(
        [sys.executable, "-c", APPENDER, str(folder), str(max_bytes)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(roots)},
    )
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(appends)]
    child.send_signal(signal.SIGKILL)
    rest = child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    child.wait(30)
    whole = [line for line in (*told, *rest) if line.endswith("\n")]
    assert len(whole) >= appends, "the child ended by itself"
    return int(whole[-1])
