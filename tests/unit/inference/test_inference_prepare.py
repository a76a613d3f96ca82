"""A session ready to serve knows its time and its verdict; its graph may come from the cache, if it is whole."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from tests.fakes import served_models as models
from tests.fakes.clock import FakeClock
from tests.fakes.row_models import mlp
from tests.fakes.scheduling import traits

from holdfast.clock import ThreadCpuClock
from holdfast.errors import DeadlineError, ModelError, StateError
from holdfast.inference.graph_cache import SUFFIX, GraphCache, entry_key, processor
from holdfast.inference.prepare import measure, prepare_session, smallest_request
from holdfast.inference.row_mixing import BUCKETS
from holdfast.inference.session import ModelSource, RunStop, SessionOptions, load_session
from holdfast.inference.traits import Traits

ONE = np.ones((1, 4), dtype=np.float32)


def test_prepared_session_knows_its_verdict_and_its_time() -> None:
    session = prepare_session(ModelSource(models.perceptron()), clock=FakeClock())

    assert session.traits.mixing.buckets == BUCKETS
    assert session.traits.run_s == 0.0  # by a clock that stands still
    assert session.traits.run_elements == 4
    assert session.traits.is_bounded


def test_time_that_others_had_the_processor_is_not_the_models() -> None:
    clock, go_on = ThreadCpuClock(), threading.Event()

    def waits() -> float:
        start_s = clock.monotonic_s()
        go_on.wait()
        return clock.monotonic_s() - start_s

    with ThreadPoolExecutor(1) as other:
        waited = other.submit(waits)
        start_s = clock.monotonic_s()
        while clock.monotonic_s() - start_s < 0.05:
            pass
        go_on.set()

        assert waited.result() < 0.05


def test_a_model_that_never_mixes_is_timed_too() -> None:
    model = models.identity(shape=("n", "t"))

    found = measure(model, load_session(ModelSource(model)), FakeClock())

    assert not found.mixing.is_allowed
    assert found.run_s == 0.0
    assert found.run_elements == 1


def test_a_model_that_refuses_zeros_has_no_time() -> None:
    model = models.gather_from_one()

    found = measure(model, load_session(ModelSource(model)), FakeClock())

    assert found.run_s is None
    assert found.alone_s(1, 1) is None


def test_a_model_with_loops_is_never_quick() -> None:
    assert Traits(1e-6, is_bounded=True).alone_s(1, 1) == 1e-6
    assert Traits(1e-6, is_bounded=False).alone_s(1, 1) is None


def test_time_grows_with_the_request() -> None:
    alone = traits(1e-4, (), 4)
    mixing = traits(1e-4, (1, 4, 8), 4)

    assert alone.alone_s(0, 2) == 1e-4
    assert alone.alone_s(0, 400) == pytest.approx(1e-2)
    assert mixing.alone_s(3, 12) == 1e-4  # as measured for a batch of 4
    assert mixing.share_s(2, 8) == pytest.approx(1e-4 * 2 / 8)
    assert traits(None).alone_s(1, 1) is None
    assert traits(None).share_s(1, 1) == 0.0


def test_shared_rows_are_those_of_inputs_that_fit_whole() -> None:
    session = load_session(ModelSource(models.two_in_two_out())).measured(traits(1e-5, (1, 2, 4), 2))

    def rows(a: int, b: int, dtype: str = "int64") -> int:
        return session.shared_rows({"a": np.zeros(a, dtype), "b": np.zeros(b, "int64")})

    assert rows(3, 3) == 3
    assert rows(3, 2) == rows(0, 0) == rows(5, 5) == rows(1, 1, "int32") == 0
    assert session.shared_rows({"a": np.zeros(1, "int64")}) == 0
    assert session.shared_rows({"a": np.zeros(1, "int64"), "c": np.zeros(1, "int64")}) == 0
    assert session.shared_rows({"a": np.zeros((1, 1), "int64"), "b": np.zeros((1, 1), "int64")}) == 0
    plain = load_session(ModelSource(models.perceptron()))
    assert plain.shared_rows({"x": ONE}) == 0


def test_a_run_that_was_stopped_says_so() -> None:
    session = load_session(ModelSource(models.hangs_at_first_run()))
    stop = RunStop()
    stop.set()

    with pytest.raises(DeadlineError, match="nobody waits"):
        session.run({"x": np.zeros(1, dtype=np.float32)}, stop=stop)


def test_a_stop_that_is_not_set_changes_nothing() -> None:
    session = load_session(ModelSource(models.scale(2.0)))

    assert session.run({"x": ONE}, stop=RunStop())["y"].tolist() == [[2, 2, 2, 2]]


def test_smallest_request_runs_whatever_the_inputs_are() -> None:
    session = load_session(ModelSource(models.two_in_two_out()))

    assert {name: array.shape for name, array in smallest_request(session).items()} == {"a": (1,), "b": (1,)}


# --- the cache of optimised graphs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state" / "graphs"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*{SUFFIX}"))


def test_cached_graph_gives_the_same_bits(folder: Path) -> None:
    model, weights = models.with_external_weight()
    rng = np.random.default_rng(1)
    for source in (ModelSource(mlp((32, 16, 4))), ModelSource(model, {"weights.bin": weights})):
        plain = load_session(source)
        x = {"x": rng.standard_normal((5, plain.inputs[0].shape[1] or 0)).astype(np.float32)}
        for _ in range(2):  # made, then read
            cached = GraphCache(folder).load(source, SessionOptions())
            assert (cached.inputs, cached.outputs) == (plain.inputs, plain.outputs)
            assert cached.run(x)["y"].tobytes() == plain.run(x)["y"].tobytes()

    assert len(entries(folder)) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *entries(folder)])
    assert len(list(folder.iterdir())) == 2  # nothing else is left


def test_cached_graph_is_what_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, source = GraphCache(folder), ModelSource(models.perceptron())
    cache.load(source, SessionOptions())
    monkeypatch.setattr("holdfast.inference.graph_cache.optimise", lambda *_: pytest.fail("made again"))

    prepared = prepare_session(source, clock=FakeClock(), cache=cache)

    assert prepared.traits.mixing.is_allowed  # judged by the author's file, not by the optimised one


@pytest.mark.parametrize("defect", ["flipped", "cut", "empty", "other_magic", "another_models"])
def test_damaged_entry_is_made_again(folder: Path, defect: str, caplog: pytest.LogCaptureFixture) -> None:
    cache, source = GraphCache(folder), ModelSource(models.scale(2.0))
    cache.load(source, SessionOptions())
    (path,) = entries(folder)
    whole = path.read_bytes()
    spoiled = {
        "flipped": whole[:-1] + bytes([whole[-1] ^ 1]),
        "cut": whole[: len(whole) // 2],
        "empty": b"",
        "other_magic": b"X" + whole[1:],
        "another_models": whole[:50] + models.scale(3.0),
    }[defect]
    path.write_bytes(spoiled)

    session = cache.load(source, SessionOptions())

    assert session.run({"x": ONE})["y"].tolist() == [[2, 2, 2, 2]]
    assert path.read_bytes() == whole
    assert "damaged" in caplog.text


def test_entry_belongs_to_model_runtime_and_processor(tmp_path: Path) -> None:
    source, options = ModelSource(models.scale(2.0)), SessionOptions()
    cpu = tmp_path / "cpuinfo"
    cpu.write_text("processor\t: 0\nmodel name\t: One\nflags\t: avx2 avx512f\n\nprocessor\t: 1\nflags\t: other\n")

    assert entry_key(source, options) == entry_key(ModelSource(models.scale(2.0)), options)
    assert entry_key(source, options) != entry_key(ModelSource(models.scale(3.0)), options)
    assert entry_key(source, options) != entry_key(source, SessionOptions(2))
    assert processor(cpu) == '["One", "avx2 avx512f", "", "", ""]'
    assert processor(tmp_path / "absent") == ""


def test_oldest_entries_go_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = GraphCache(folder)
    for age, factor in enumerate((1.0, 2.0, 3.0)):
        cache.load(ModelSource(models.scale(factor)), SessionOptions())
        newest = max(entries(folder), key=lambda path: path.stat().st_mtime_ns)
        os.utime(newest, (age, age))
    size = entries(folder)[0].stat().st_size
    monkeypatch.setattr("holdfast.inference.graph_cache.MAX_BYTES", 2 * size + size // 2)

    cache.load(ModelSource(models.scale(4.0)), SessionOptions())

    assert len(entries(folder)) == 2
    names = {path.stem for path in entries(folder)}
    assert {entry_key(ModelSource(models.scale(factor)), SessionOptions()) for factor in (3.0, 4.0)} == names


def test_cache_that_cannot_be_written_serves_all_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise StateError("no space left")

    monkeypatch.setattr("holdfast.inference.graph_cache.write_atomic", full)

    session = GraphCache(folder).load(ModelSource(models.scale(2.0)), SessionOptions())

    assert session.run({"x": ONE})["y"].tolist() == [[2, 2, 2, 2]]
    assert "not kept" in caplog.text


def test_cache_refuses_a_folder_that_others_can_write(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)

    with pytest.raises(StateError, match="written by others"):
        GraphCache(tmp_path / "open")


def test_cache_reports_a_model_that_is_none(folder: Path) -> None:
    with pytest.raises(ModelError, match="not a model"):
        GraphCache(folder).load(ModelSource(b"nonsense"), SessionOptions())

    assert entries(folder) == []


# --- threads and memory, each in a process of its own

SHARED_THREADS = """
import os, sys
from holdfast.inference.session import ModelSource, SessionOptions, load_session, share_threads
from pathlib import Path
source = ModelSource.from_file(Path(sys.argv[1]))
count = lambda: len(os.listdir("/proc/self/task"))
if sys.argv[2] == "shared":
    share_threads(3)
options = SessionOptions(3, shared_threads=sys.argv[2] == "shared")
first = load_session(source, options)
one = count()
held = [load_session(source, options) for _ in range(10)]
print(count() - one)
"""

GIVEN_BACK = """
import sys
from pathlib import Path
import numpy as np
from holdfast.inference.memory import give_back
from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
pages = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096
def serve(pool, times):
    for _ in range(times):
        session = prepare_session(ModelSource.from_file(Path(sys.argv[1])))
        pool.swap("m", "1", session)
        session.run({"x": np.ones((64, 1024), dtype=np.float32)})
pool = ModelPool()
serve(pool, 1); pool.remove("m"); give_back()
empty = pages()
serve(pool, 1)
loaded = pages()
serve(pool, 4)
pool.remove("m"); give_back()
print(empty, loaded, pages())
"""


def python(script: str, *arguments: str) -> str:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


@pytest.mark.slow
def test_shared_threads_are_made_once(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp((16, 8)))

    assert int(python(SHARED_THREADS, str(path), "own")) >= 20  # two more threads for each of ten sessions
    assert int(python(SHARED_THREADS, str(path), "shared")) == 0


@pytest.mark.slow
def test_memory_is_given_back_after_unload(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(mlp((1024, 4096, 2048)))  # 50 MB

    empty, loaded, after = map(int, python(GIVEN_BACK, str(path)).split())

    assert loaded - empty > 40e6
    assert after - empty < 0.25 * (loaded - empty)
