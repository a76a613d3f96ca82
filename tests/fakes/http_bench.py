"""The native front without sockets and one peer that speaks HTTP/1.1; and requests for it, plain ones and others.

Models: "m" and "apart", whose rows run alone: float32[n, 4] -> y. "two": int64 a, b -> sum, same. "s", "half", "bool"
give back x of their type.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from tests.fakes.native_bench import NativeBench
from tests.fakes.wire import Wire

from holdfast.inference.pool import ModelPool
from holdfast.inference.session import ModelSession
from holdfast.serving.authorisation import AccessRules
from holdfast.serving.native.backend import PeerFacts
from holdfast.serving.native.http1_peer import Http1Peer

TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"
BOTH = {"binary_data_output": True}


class HttpBench(NativeBench):
    """The same front, and one peer that speaks HTTP/1.1."""

    def __init__(self, sessions: dict[str, ModelSession], *, memoise: bool = True, rules: AccessRules | None = None):
        pool = ModelPool()
        for name, session in sessions.items():
            pool.swap(name, "1", session)
        super().__init__(pool, memoise=memoise, rules=rules)
        self.connect()

    def connect(self) -> None:
        """Another connection in place of the last."""
        self.http_wire = Wire()
        self.http = Http1Peer(self.front._backend, self.http_wire, PeerFacts(), self.clock.monotonic_s())

    def said(self, *pieces: bytes) -> bytes:
        """What comes back to what is sent, a turn after each piece."""
        for piece in pieces:
            self.http.receive(piece)
            self.turn()
        data, self.http_wire.data = self.http_wire.data, b""
        return data


def rows(count: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4)).astype(np.float32)


def framed(header: bytes, raw: bytes = b"", *fields: str, path: str = "m", length: int | None = None) -> bytes:
    """A request to infer, from its JSON and its tensors."""
    lines = [
        f"POST /v2/models/{path}/infer HTTP/1.1",
        "Host: h",
        f"Inference-Header-Content-Length: {len(header) if length is None else length}",
        *fields,
        f"Content-Length: {len(header) + len(raw)}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + header + raw


def asked(x: np.ndarray, *fields: str, request_id: str | None = None, path: str = "m", **more: object) -> bytes:
    """As most libraries write it: the id first."""
    tensor = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}
    named = {} if request_id is None else {"id": request_id}
    top: dict[str, object] = {**named, "inputs": [tensor], "parameters": BOTH, **more}
    return framed(json.dumps(top).encode(), x.tobytes(), *fields, path=path)


def tensor_of(name: str, x: np.ndarray, datatype: str) -> dict[str, object]:
    return {"name": name, "datatype": datatype, "shape": list(x.shape), "parameters": {"binary_data_size": x.nbytes}}


def two_asked(count: int, outputs: Sequence[object] = ()) -> bytes:
    a, b = np.arange(count), np.arange(count) + 7
    inputs = [tensor_of("a", a, "INT64"), tensor_of("b", b, "INT64")]
    top = {"id": "t", "inputs": inputs, "parameters": BOTH, **({"outputs": outputs} if outputs else {})}
    return framed(json.dumps(top).encode(), a.tobytes() + b.tobytes(), path="two")


def written(data: object, *fields: str, shape: Sequence[int] = (2, 4), path: str = "m", **more: object) -> bytes:
    """A request whose tensor is JSON. data: a value, or bytes that stand where it stood."""
    datatype = {"m": "FP32", "apart": "FP32", "half": "FP16", "s": "BYTES", "bool": "BOOL", "two": "INT64"}[
        path.partition("/")[0]
    ]
    tensor = {"name": "x", "datatype": datatype, "shape": list(shape), "data": "?" if isinstance(data, bytes) else data}
    body = json.dumps({**more, "inputs": [tensor]}).encode()
    if isinstance(data, bytes):
        body = body.replace(b'"?"', data)
    lines = [f"POST /v2/models/{path}/infer HTTP/1.1", "Host: h", *fields, f"Content-Length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def two_written(a: object, b: object, outputs: Sequence[object] = ()) -> bytes:
    inputs = [{"name": name, "datatype": "INT64", "shape": [2], "data": data} for name, data in (("a", a), ("b", b))]
    body = json.dumps({"inputs": inputs, **({"outputs": outputs} if outputs else {})}, separators=(",", ":")).encode()
    return b"POST /v2/models/two/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def unlike_written() -> list[bytes]:
    """Requests in JSON that are not plain, or refused."""
    eight = list(range(8))
    odd = [b"[1,2,3,4,5,6,7]", b"[1,2,3,4],[5,6,7,8]", b"[[1,2,3,4],5,6,7,8]", b"[[[[", b"[" * 3_000 + b"]" * 3_000]
    odd += [b"[1,2,3,4,5,6,7,1e40]", b"[1,2,3,4,5,6,7,1e400]", b"[1,2,3,4,5,6,7,NaN]", b"[01,2,3,4,5,6,7,8]", b"[1 2]"]
    odd += [b"[1,2,3,4,5,6,7,true]", b'[1,2,3,4,5,6,7,"8"]', b"7", b"[]", b"[-]", b"[,]", b'{"data":[1]}', b"[1,2]]"]
    odd += [b"[1,2,3,4,5,6,7,8" + b"0" * 5_000 + b"]", b"[3e38,3e38,3e38,3e38,-3e38,3e38,3e38,3e38]"]
    hidden = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":  [1,2,3,4]}],"parameters":{"data":[5,6,7,8]}}'
    )
    made = [written(each, id="odd") for each in (eight, *odd)]
    made += [b"POST /v2/models/m/infer HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (len(hidden), hidden)]
    made += [
        written(eight, parameters={"data": [1, 2]}),
        written(eight, id="x", parameters={"id": "y"}),
        written(eight, outputs=[{"name": "y", "parameters": {"classification": 2}}]),
        written(eight, parameters={"timeout": 5}),
        written(eight, shape=(8,)),
        written(eight * 20, shape=(40, 4)),
        written(eight, "Inference-Header-Content-Length: 12"),
        written(eight, "Inference-Header-Content-Length: x"),
        written(["a", "b"], shape=(2,), path="s"),
        written([True] * 8, path="bool"),
        written(eight, path="two"),
        written([3e38] * 8, path="apart"),
        written([3e38] * 8, path="apart", outputs=[{"name": "q"}]),
        two_written([1.5, 2], [3, 4]),
        two_written([2**63, 2], [3, 4]),
        two_written([1, 2], [3, 4], [{"name": "sum"}, {"name": "sum"}]),
        two_written([1, 2], [3, 4], [{"name": "sum"}, {"name": "same", "parameters": {"binary_data": True}}]),
        framed(b'{"inputs":[{"name":"data","data":[1],"shape":[1],"datatype":"FP32"}]}'),
    ]
    return made


def plain_written(turn: int) -> list[bytes]:
    """What a client sends all day."""
    numbers = np.random.default_rng(turn).standard_normal((7, 4))
    made = [written(numbers[: n + 1].tolist(), shape=(n + 1, 4), id="i" * n) for n in range(7)]
    made += [written(numbers[:2].ravel().tolist(), f"traceparent: 00-{turn + 1:032x}-{turn + 1:016x}-01")]
    made += [
        written([turn, -0.0, 1e-7, 0.1] * 2),
        written([0.1, 3] * 4, path="half", id="h"),
        written(b"[ 1 ,2e2,3,4]", shape=(1, 4)),
    ]
    made += [written([turn] * 8, parameters=BOTH), written([[turn] * 4] * 2, "Accept-Encoding: gzip")]
    made += [two_written([turn, 2], [[3], [-4]]), two_written([1, turn], [3, 4], [{"name": "sum"}])]
    made += [written([[turn] * 4] * 2, path="apart"), written([turn] * 8, id="b", path="apart", parameters=BOTH)]
    tensor = json.dumps(tensor_of("x", rows(2), "FP32"))
    made += [framed(f'{{"inputs":[{tensor}]}}'.encode(), rows(2, seed=turn).tobytes())]
    return made


def unlike() -> list[bytes]:
    """What is no plain request, or one that is refused."""
    x = rows(2)
    raw = x.tobytes()
    tensor = json.dumps(tensor_of("x", x, "FP32"))
    binary = '"parameters":{"binary_data_output":true}'
    a, b = {"name": "a", "datatype": "INT64", "shape": [2], "data": [1, 2]}, tensor_of("b", np.arange(2), "INT64")
    return [
        *(framed(f'{{"id":"{name}","inputs":[{tensor}],{binary},"id":"b"}}'.encode(), raw) for name in "ba"),
        *(framed(f'{{"id":"{name}","inputs":[{tensor}],{binary},"\\u0069d":"d"}}'.encode(), raw) for name in "dc"),
        *(
            framed(f'{{"id":"{name}","inputs":[{tensor}],{binary}}}'.encode(), raw)
            for name in ("a", "abcdef", "\\u0041")
        ),
        framed(json.dumps({"inputs": [a, b], "parameters": BOTH}).encode(), np.arange(2).tobytes(), path="two"),
        framed(f'{{"inputs":[{tensor}],{binary},"id":"last"}}'.encode(), raw),
        framed(f'{{"id":7,"inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"\\n\\"","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"\t","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"\x7f","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"gr\u00fcn","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(b'{"id":"\xff"}', raw),
        framed(f'{{"id":"never ends, {tensor}'.encode(), raw),
        framed(f'{{"id": "wide", "inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(f'{{"id":"","inputs":[{tensor}],{binary}}}'.encode(), raw),
        framed(
            f'{{"inputs":[{tensor}],{binary},"outputs":[{{"name":"y","parameters":{{"binary_data":false}}}}]}}'.encode(),
            raw,
        ),
        framed(f'{{"inputs":[{tensor}],"outputs":[{{"name":"y","parameters":{{"binary_data":true}}}}]}}'.encode(), raw),
        framed(
            f'{{"inputs":[{tensor}],{binary},"outputs":[{{"name":"y","parameters":{{"classification":2}}}}]}}'.encode(),
            raw,
        ),
        framed(f'{{"inputs":[{tensor}],{binary},"outputs":[{{"name":"q"}}]}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true,"timeout":9}}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true,"priority":2}}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],"parameters":{{"binary_data_output":true,"sequence_id":2}}}}'.encode(), raw),
        framed(f'{{"inputs":[{tensor}],{binary}}}'.encode(), raw[:-1]),
        framed(f'{{"inputs":[{tensor}],{binary}}}'.encode(), raw + b"x"),
        framed(f'{{"inputs":[{tensor},{tensor}],{binary}}}'.encode(), raw + raw),
        framed(b"", raw),
        framed(b"", raw, length=9_999),
        framed(b"{}", raw, length=-1),  # type: ignore[arg-type]
        asked(x),
        asked(x, path="nobody"),
        asked(x, path="m/versions/7"),
        asked(x, path="m/versions/1"),
        asked(rows(40)),
        asked(rows(0)),
        asked(np.ones((1, 5), np.float32)),
        asked(x, "Accept-Encoding: gzip"),
        asked(rows(30), "Accept-Encoding: gzip", outputs=[{"name": "y"}] * 2),
        asked(x, "Content-Encoding: gzip"),
        asked(x, "traceparent: 00-zz"),
        asked(x, f"TraceParent: {TRACE}"),
        asked(x, f"traceparent: {TRACE}", "TRACEPARENT: 00-zz"),
        asked(x, "traceparent: "),
        asked(x).replace(b"POST", b"GET"),
        asked(x).replace(b"POST", b"HEAD"),
        asked(x).replace(b"/infer", b"/infer?a=b"),
    ]


def plain(turn: int) -> list[bytes]:
    """What a client sends all day."""
    made = [asked(rows(1 + n % 7, seed=n), request_id="i" * (n % 4)) for n in range(9)]
    made += [asked(rows(1, seed=n), f"traceparent: 00-{turn + n + 1:032x}-{n + 1:016x}-01") for n in range(3)]
    made += [asked(rows(2, seed=turn), f"traceparent: {TRACE}", path="apart", request_id=f"a{turn}")]
    made += [asked(rows(30), "Accept-Encoding: br", request_id="long"), two_asked(3), two_asked(2, [{"name": "sum"}])]
    return made
