"""Our server without its memory of heads, which no flag of `holdfast serve` turns off: `... serving_child FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from holdfast.inference.pool import ModelPool
from holdfast.inference.prepare import prepare_session
from holdfast.inference.session import ModelSource
from holdfast.serving.server import Address, Server, ServerOptions


def main() -> None:
    pool = ModelPool()
    for path in sorted(Path(sys.argv[1]).glob("*/1/model.onnx")):
        pool.swap(path.parent.parent.name, "1", prepare_session(ModelSource.from_file(path)))
    server = Server(pool, options=ServerOptions(Address("127.0.0.1", 0), memoise=False))
    print(server.start(), flush=True)
    sys.stdin.read()
    server.stop(1.0)


if __name__ == "__main__":
    main()
