"""Metrics and statistics: the text is Prometheus', each number is what happened, and clients cannot make it grow."""

from __future__ import annotations

import json
import re
from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes import served_models as models
from tests.fakes.offer import Counter, counter
from tests.fakes.serving import pool_of

from holdfast.clock import SystemClock
from holdfast.errors import RequestError
from holdfast.inference.pool import ModelPool, ServedModel
from holdfast.inference.session import ModelSource, load_session
from holdfast.serving import metrics, oip_pb2
from holdfast.serving.protocols import OK, BatchEvent, TapEvent
from holdfast.serving.rpc import MODEL_INFER
from holdfast.serving.statistics import MAX_ENTRIES, MAX_GONE, NOWHERE, Statistics
from holdfast.sketch.histogram import ExponentialHistogram

SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)\Z')


def parsed(text: str) -> dict[tuple[str, str], float]:
    """(name, labels) -> value; fails on a line that is no sample and no comment."""
    found = {}
    for line in text.splitlines():
        if not line.startswith("# "):
            match = SAMPLE.match(line)
            assert match, line
            assert (match[1], match[2] or "") not in found, line
            found[match[1], match[2] or ""] = float(match[3])
    return found


def infer(desk: Counter, model: str, rows: int = 1, width: int = 4) -> int:
    data = {"name": "x", "datatype": "FP32", "shape": [rows, width], "data": [0.5] * (rows * width)}
    return desk.http("POST", f"/v2/models/{model}/infer", json.dumps({"inputs": [data]}).encode()).status


def test_page_tells_what_happened() -> None:
    desk = counter(pool_of({"m": models.scale(2.0)}))
    assert [infer(desk, "m"), infer(desk, "m", 3), infer(desk, "m", 1, 2), infer(desk, "absent")] == [
        200,
        200,
        400,
        404,
    ]

    page = desk.http("GET", "/metrics")

    assert page.content_type.startswith("text/plain; version=0.0.4")
    found, labels = parsed(page.body.decode()), 'model="m",version="1"'
    assert found["holdfast_requests_total", labels] == 2
    assert found["holdfast_rows_total", labels] == 4
    assert found["holdfast_runs_total", labels] == 2
    assert found["holdfast_request_errors_total", f'{labels},reason="HF-REQUEST-003"'] == 1
    assert found["holdfast_request_errors_total", 'model="",version="",reason="HF-REQUEST-002"'] == 1
    assert found["holdfast_batch_rows_bucket", f'{labels},le="1"'] == 1
    assert found["holdfast_batch_rows_bucket", f'{labels},le="4"'] == 2
    assert found["holdfast_request_seconds_bucket", f'{labels},le="+Inf"'] == 2
    assert found["holdfast_request_seconds_count", labels] == 2
    assert found["holdfast_model_ready", labels] == 1
    assert found["holdfast_ready", ""] == 1


@given(st.lists(st.floats(1e-6, 30.0), max_size=200))
def test_cumulative_buckets_are_exact(values: list[float]) -> None:
    histogram = ExponentialHistogram()
    for value in values:
        histogram.add(value)

    got = metrics.cumulative(histogram.snapshot(), metrics.LATENCY_BOUNDS_S)

    if histogram.scale >= 0:  # coarser histograms have fewer bounds of ours
        assert got == [bisect_right(sorted(values), bound) for bound in metrics.LATENCY_BOUNDS_S]
    assert got == sorted(got)


def test_value_on_a_bound_belongs_to_it() -> None:
    histogram = ExponentialHistogram()
    histogram.add(2.0**-10)

    assert metrics.cumulative(histogram.snapshot(), [2.0**-11, 2.0**-10]) == [0, 1]


def test_labels_are_escaped() -> None:
    statistics = Statistics(ModelPool(), SystemClock())
    statistics.on_response(TapEvent('a"b\\c\nd', "1", ("",), (0.1,), OK, None, None))

    text = metrics.render(statistics.counts(), [], "0", metrics.State(is_ready=False, waiting={}, refusals={}))

    assert 'holdfast_requests_total{model="a\\"b\\\\c\\nd",version="1"} 1\n' in text
    parsed(text)


def test_unknown_names_open_no_entry() -> None:
    desk = counter(pool_of({"m": models.scale(2.0)}))
    for number in range(50):
        assert infer(desk, f"absent-{number}") == 404

    text = desk.http("GET", "/metrics").body.decode()

    assert "absent" not in text
    assert parsed(text)["holdfast_request_errors_total", 'model="",version="",reason="HF-REQUEST-002"'] == 50


class EverythingIsServed(ModelPool):
    """A pool of any number of models, without one."""

    def find(self, name: str, version: str = "") -> ServedModel | None:
        return object()  # type: ignore[return-value]  # only asked whether it is there


def answered(statistics: Statistics, version: str) -> None:
    statistics.on_response(TapEvent("m", version, ("",), (0.1,), OK, None, None))


def test_entries_are_bounded() -> None:
    statistics = Statistics(EverythingIsServed(), SystemClock())
    for number in range(MAX_ENTRIES + 10):
        answered(statistics, str(number))

    assert len(statistics.counts()) == MAX_ENTRIES
    assert ("m", "0") not in statistics.counts()


def test_of_versions_that_are_gone_only_the_last_are_kept() -> None:
    pool = ModelPool()
    statistics = Statistics(pool, SystemClock())
    session = load_session(ModelSource(models.scale(2.0)))
    pool.swap("kept", "1", session)
    statistics.on_response(TapEvent("kept", "1", ("",), (0.1,), OK, None, None))
    statistics.on_response(TapEvent("nobody", "", ("",), (0.1,), "HF-X", None, None))

    for number in range(3 * MAX_GONE):
        pool.swap("m", str(number), session)
        answered(statistics, str(number))

    gone = [str(number) for number in range(2 * MAX_GONE - 1, 3 * MAX_GONE - 1)]
    assert set(statistics.counts()) == {NOWHERE, ("kept", "1"), *(("m", n) for n in gone), ("m", str(3 * MAX_GONE - 1))}
    assert statistics.counts()["m", gone[-1]].requests == 1


@pytest.mark.parametrize("over", ["http", "grpc"])
def test_request_that_cannot_be_read_counts_for_the_model_it_names(over: str) -> None:
    desk = counter(pool_of({"m": models.scale(2.0)}))
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1.0]}  # three are missing

    for model in ("m", "absent"):
        if over == "http":
            body = json.dumps({"inputs": [tensor]}).encode()
            assert desk.http("POST", f"/v2/models/{model}/infer", body).status == 400
        else:
            message = oip_pb2.ModelInferRequest(model_name=model)
            message.inputs.add(name="x", datatype="FP32", shape=[1, 4]).contents.fp32_contents.append(1.0)
            with pytest.raises(RequestError):
                desk.grpc(MODEL_INFER, message.SerializeToString())

    found = parsed(desk.http("GET", "/metrics").body.decode())
    assert found["holdfast_request_errors_total", 'model="m",version="1",reason="HF-REQUEST-003"'] == 1
    assert found["holdfast_request_errors_total", 'model="",version="",reason="HF-REQUEST-003"'] == 1


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (32, 32), (33, 64), (64, 64), (65, 128), (1_000_000, 1_048_576)])
def test_large_batch_sizes_are_rounded_up(rows: int, size: int) -> None:
    statistics = Statistics(ModelPool(), SystemClock())

    statistics.on_batch(BatchEvent("m", "1", 2, rows, 0, 0.5, 0.25))

    counts = statistics.counts()["m", "1"]
    assert (list(counts.batches), counts.rows, counts.queue_s) == ([size], rows, 0.5)
    assert (counts.compute_s, counts.charged_s) == (0.25, 0.5)


def test_error_without_a_version_counts_for_the_one_that_would_answer() -> None:
    pool = pool_of({"m": models.scale(1.0)})
    statistics = Statistics(pool, SystemClock())

    statistics.on_response(TapEvent("m", "", ("",), (0.1,), "HF-X", None, None))
    statistics.on_response(TapEvent("m", "9", ("",), (0.1,), "HF-X", None, None))

    assert statistics.counts()["m", "1"].errors == {"HF-X": 1}
    assert statistics.counts()[NOWHERE].errors == {"HF-X": 1}


def test_many_latencies_are_all_counted() -> None:
    statistics = Statistics(ModelPool(), SystemClock())
    for value in np.linspace(0.001, 1.0, 3_000).tolist():
        statistics.on_response(TapEvent("m", "1", ("",), (value,), OK, None, None))

    latency = statistics.counts()["m", "1"].latency

    assert latency.count == 3_000
    assert latency.max == 1.0
