"""curl, nghttp and h2load: HTTP/1.1 and HTTP/2 by libcurl and nghttp2, plain and over TLS."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from tests.conformance.conftest import Target
from tests.conformance.programs import output, program
from tests.fakes.serving import INFER, call

from holdfast.inference.tensors import TensorRequest
from holdfast.serving import oip

GRPC_HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
JSON_ONE = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]})
VERSIONS = {"1.1": "--http1.1", "2": "--http2-prior-knowledge"}
LARGE = np.arange(150_528, dtype=np.float32).reshape(-1, 4)  # 602 kB


def curl(target: Target, *arguments: str | Path) -> str:
    trust = () if target.authority is None else ("--cacert", target.authority)
    return output([program("curl"), "--silent", "--show-error", "--max-time", "60", *trust, *arguments])


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_curl_infers(target: Target, version: str) -> None:
    told = curl(
        target, VERSIONS[version], "-d", JSON_ONE, "-w", "\n%{http_version} %{http_code}",
        f"{target.url}/v2/models/double/infer",
    )  # fmt: skip

    body, figures = told.rsplit("\n", 1)
    assert figures == f"{version} 200"
    assert json.loads(body)["outputs"][0]["data"] == [2, 4, 6, 8]


def test_curl_is_offered_http_2_by_alpn(secured: Target) -> None:
    assert curl(secured, "-o", "/dev/null", "-w", "%{http_version}", f"{secured.url}/v2/health/ready") == "2"
    assert (
        curl(secured, "--http1.1", "-o", "/dev/null", "-w", "%{http_version}", f"{secured.url}/v2/health/ready")
        == "1.1"
    )


def test_curl_that_offers_to_upgrade_is_served_as_before(plain: Target) -> None:
    assert (
        curl(plain, "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", f"{plain.url}/v2/health/ready")
        == "1.1 200"
    )


@pytest.mark.parametrize("version", sorted(VERSIONS))
@pytest.mark.parametrize("more", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Expect: 100-continue")])
def test_curl_sends_and_gets_large_binary_tensors(
    target: Target, tmp_path: Path, version: str, more: tuple[str, ...]
) -> None:
    if version == "2" and "chunked" in str(more):
        more = ("-H", "Content-Length:")  # HTTP/2 has no chunks: a body without a length is the same there
    entry = {"name": "x", "datatype": "FP32", "shape": LARGE.shape, "parameters": {"binary_data_size": LARGE.nbytes}}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    (tmp_path / "body").write_bytes(header + LARGE.tobytes())

    curl(
        target, VERSIONS[version], "--data-binary", f"@{tmp_path}/body", "-o", tmp_path / "answer", "-f",
        "-H", f"Inference-Header-Content-Length: {len(header)}", *more, f"{target.url}/v2/models/identity/infer",
    )  # fmt: skip

    assert (tmp_path / "answer").read_bytes().endswith(LARGE.tobytes())


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_curl_reuses_its_connection_and_takes_compressed_answers(secured: Target, version: str) -> None:
    """Over TLS: curl 7.88, Debian's, breaks its own second request on HTTP/2 with prior knowledge, to any server."""
    urls = [f"{secured.url}/v2/models/double"] * 5

    told = curl(secured, f"--http{version}", "--compressed", "-w", "\n%{num_connects}\n", *urls)

    assert [line for line in told.splitlines() if line.isdigit()] == ["1", "0", "0", "0", "0"]
    assert told.count('"name": "double"') == 5


@pytest.mark.parametrize("version", sorted(VERSIONS))
def test_curl_is_told_what_was_wrong(target: Target, version: str) -> None:
    defects = (
        ("/nowhere", "{", 404),
        ("/v2/models/absent/infer", JSON_ONE, 404),
        ("/v2/models/double/infer", "{", 400),
    )
    for path, body, status in defects:
        told = curl(target, VERSIONS[version], "-d", body, "-w", "\n%{http_code}", target.url + path)
        answer, code = told.rsplit("\n", 1)
        assert int(code) == status
        assert json.loads(answer)["error"]
    head = curl(target, VERSIONS[version], "--head", f"{target.url}/v2")
    assert re.search(r"^HTTP/\S+ 200", head)


NGHTTP: dict[str, tuple[str, ...]] = {
    "as_it_is": (),
    "many_at_once": ("-m", "50"),
    "padding": ("-b", "100"),
    "windows_of_1_kib": ("-w", "10", "-W", "10"),
    "no_header_table": ("--header-table-size", "0", "--encoder-header-table-size", "0"),
    "small_then_large_table": ("--header-table-size", "0", "--header-table-size", "8192"),
    "small_head_table": ("--header-table-size", "100", "--encoder-header-table-size", "100"),
    "with_trailers": ("--trailer", "x-end: 1"),
    "waits_for_100_continue": ("--expect-continue",),
    "priorities": ("-p", "200"),
}


def nghttp(target: Target, folder: Path, *arguments: str) -> str:
    """What nghttp tells of a large request to the identity model, and of its answer."""
    entry = {"name": "x", "datatype": "FP32", "shape": LARGE.shape, "parameters": {"binary_data_size": LARGE.nbytes}}
    header = json.dumps({"inputs": [entry], "parameters": {"binary_data_output": True}}).encode()
    (folder / "body").write_bytes(header + LARGE.tobytes())
    fields = (f"Inference-Header-Content-Length: {len(header)}", "Accept-Encoding: identity")
    headers = [part for field in fields for part in ("-H", field)]
    command = [program("nghttp"), "-v", "--null-out", "--timeout=60s", "-d", folder / "body", *arguments]
    return output([*command, *headers, f"{target.url}/v2/models/identity/infer"])


@pytest.mark.parametrize("case", sorted(NGHTTP))
def test_nghttp_sends_a_body_and_gets_it_back(target: Target, tmp_path: Path, case: str) -> None:
    told = nghttp(target, tmp_path, *NGHTTP[case])

    count = 50 if case == "many_at_once" else 1
    assert told.count(":status: 200") == count
    got = sum(int(size) for size in re.findall(r"recv DATA frame <length=(\d+)", told))
    assert got > count * LARGE.nbytes
    assert "error_code=" not in told.replace("error_code=NO_ERROR", "")


def test_head_larger_than_announced_is_refused(target: Target, tmp_path: Path) -> None:
    """nghttp sends 32 KiB of it in CONTINUATION frames, whatever bound it is told."""
    told = nghttp(target, tmp_path, "--continuation")

    assert "error_code=ENHANCE_YOUR_CALM" in told
    assert ":status: 200" not in told


H2LOAD: dict[str, tuple[str, ...]] = {
    "one_connection": ("-c", "1", "-m", "32"),
    "more_streams_than_allowed": ("-c", "2", "-m", "300"),
    "many_connections": ("-c", "200", "-m", "4"),
    "windows_of_1_kib": ("-c", "4", "-m", "32", "-w", "10", "-W", "10"),
    "no_header_table": ("-c", "4", "-m", "16", "--header-table-size=0", "--encoder-header-table-size=0"),
    "two_threads": ("-c", "8", "-m", "16", "-t", "2"),
}


def h2load(target: Target, path: str, count: int, *arguments: str | Path) -> int:
    """Bytes of bodies that came back. Fails unless every request succeeded."""
    told = output([program("h2load"), "-n", str(count), *arguments, target.url + path])
    assert f"{count} done, {count} succeeded, 0 failed, 0 errored, 0 timeout" in told, told
    assert f"{count} 2xx" in told, told
    found = re.search(r"\((\d+)\) data\n", told)
    assert found is not None, told
    return int(found[1])


@pytest.mark.parametrize("case", sorted(H2LOAD))
def test_h2load_gets_every_answer(target: Target, tmp_path: Path, case: str) -> None:
    """h2load does not look at grpc-status; that no answer is empty shows in the number of bytes."""
    message = oip.encode_request(TensorRequest("double", "", "seven", {"x": LARGE[:8]}))
    answer = call(target.address, message) if target.authority is None else None
    (tmp_path / "body").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)

    got = h2load(target, INFER, 10_000, "-d", tmp_path / "body", *GRPC_HEADERS, *H2LOAD[case])

    size = len(answer) if answer is not None else got // 10_000 - 5
    assert got == 10_000 * (5 + size)
    assert size > LARGE[:8].nbytes


def test_h2load_gets_large_answers_through_small_windows(target: Target, tmp_path: Path) -> None:
    message = oip.encode_request(TensorRequest("identity", "", "", {"x": LARGE}))
    (tmp_path / "body").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)

    got = h2load(
        target, INFER, 200, "-d", tmp_path / "body", *GRPC_HEADERS, "-c", "4", "-m", "4", "-w", "14", "-W", "16"
    )

    assert got > 200 * LARGE.nbytes


def test_h2load_over_http_1_gets_every_answer(target: Target, tmp_path: Path) -> None:
    (tmp_path / "body").write_text(JSON_ONE)

    got = h2load(target, "/v2/models/double/infer", 5_000, "--h1", "-c", "50", "-d", tmp_path / "body")

    assert got % 5_000 == 0
    assert got // 5_000 > len(b'{"model_name":"double"}')
