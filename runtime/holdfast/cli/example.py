"""`holdfast example`: write a small working model, for people who have none."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from holdfast.cli.command import EXIT_OK, Command
from holdfast.errors import UsageError


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="FILE.onnx", help="where to write the model")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def _run(arguments: argparse.Namespace) -> int:
    from holdfast.inference.example_model import digits_model

    path: Path = arguments.path
    data = digits_model()
    try:
        with path.open("wb" if arguments.force else "xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise UsageError(f"{path} exists; choose another name, or add --force to replace it") from error
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    if arguments.json:
        print(json.dumps({"path": str(path), "bytes": len(data)}))
        return EXIT_OK
    print(f"wrote {path} ({len(data)} bytes): ten handwritten digits, told apart by ten drawn 8 x 8 templates")
    print(
        "  input   pixels float32[n, 64], 0 (paper) to 16 (ink); outputs probabilities float32[n, 10], digit int64[n]"
    )
    print("  nothing in it is trained: it shows serving at work and knows about two in three of real digits")
    print(f"next: holdfast serve {path}")
    return EXIT_OK


EXAMPLE = Command(
    help="write a small working ONNX model to try things with",
    add_arguments=_arguments,
    run=_run,
    description="""Write a small working ONNX model to try things with.

  holdfast example digits.onnx
  holdfast serve digits.onnx""",
)
