"""`holdfast`: finds the sub-command, runs it, and turns errors into a message and an exit code.

Sub-commands come from `commands.py`; a dot in a name makes a group. This is one of the three doors where unknown errors
are caught: they are logged in full and shown as an internal error.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec

from holdfast import __version__
from holdfast.cli.command import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, Command
from holdfast.cli.commands import known_commands, load_object
from holdfast.cli.logs import set_up_logging
from holdfast.errors import HoldfastError, MissingExtraError, SettingsError, UsageError

GROUPS = {
    "agent": "the enrolled device: enrol, run, status",
    "bundle": "pack, verify and inspect a model bundle; whether a model can be trained",
    "coordinator": "the coordinator: init, run, tokens, devices, models, rounds",
    "evidence": "export evidence, and verify it offline",
    "key": "make the keys of an author or an approver",
    "rounds": "federated rounds: start, list, stop",
    "site": "the owner of the data: keys and the signed policy",
}
EXTRA_OF_MODULE = {
    "flwr": "federated",
    "onnx": "author",
    "starlette": "coordinator",
    "jinja2": "coordinator",
    "uvicorn": "coordinator",
    "sklearn": "demo",
    "yaml": "demo",
    "rich": "demo",
}

DEFAULT_COLUMNS, MARGIN_COLUMNS = 80, 2  # as argparse has them
LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line. Returns the exit code; never raises."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        set_up_logging(_log_level())
        parsed = build_parser(arguments).parse_args(arguments)
        command: Command | None = getattr(parsed, "command", None)
        if command is None:
            parsed.parser.print_help()
            return EXIT_USAGE
        return command.run(parsed)
    except SystemExit as exit_:  # argparse: --help, or a command line that does not parse
        return exit_.code if isinstance(exit_.code, int) else EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except HoldfastError as error:
        show_error(error.code, str(error), as_json=as_json)
        return EXIT_USAGE if isinstance(error, UsageError) else EXIT_FAILED
    except Exception as error:  # the command line's door
        missing = missing_extra(error)
        if missing is not None:
            show_error(missing.code, str(missing), as_json=as_json)
            return EXIT_USAGE
        logger.exception("internal error")
        show_error("HF-INTERNAL", f"internal error: {type(error).__name__}; the log holds the details", as_json=as_json)
        return EXIT_FAILED


def build_parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    """The parser for these arguments; loads only the modules that they, or their help, need."""
    parser = argparse.ArgumentParser(
        prog="holdfast",
        description="Serve ONNX models at the edge, report what is measured, learn where the data is.",
        formatter_class=_lines(argparse.HelpFormatter),
    )
    parser.add_argument("--version", action="version", version=f"holdfast {__version__}{_form()}")
    parser.set_defaults(parser=parser)
    words = [word for word in arguments if not word.startswith("-")]
    found = known_commands(words)
    subparsers = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name in sorted({name.split(".")[0] for name in found}):
        if words and words[0] != name:
            subparsers.add_parser(name, formatter_class=_lines(argparse.HelpFormatter))
        elif name in found:
            _add_command(subparsers, name, found[name])
        else:
            _add_group(subparsers, name, found)
    return parser


def _form() -> str:
    """Whether this installation was compiled (`runtime/compile_hook.py`): its modules share a library."""
    return " (compiled)" if find_spec("holdfast__mypyc") else ""


def missing_extra(error: BaseException) -> MissingExtraError | None:
    """The error to show when an import failed because an optional extra is not installed."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    extra = EXTRA_OF_MODULE.get(error.name.split(".")[0])
    if extra is None:
        return None
    return MissingExtraError(f"this command needs '{error.name}'; install it with: pip install 'holdfast[{extra}]'")


def show_error(code: str, message: str, *, as_json: bool) -> None:
    """Print an error for a person (stderr) or for a machine (one JSON object on stdout)."""
    if as_json:
        print(json.dumps({"error": {"code": code, "message": message}}))
    else:
        print(f"error {code}: {message}", file=sys.stderr)


def _log_level() -> str:
    level = os.environ.get("HOLDFAST_LOG_LEVEL", "WARNING").upper()
    if level not in LOG_LEVELS:
        raise SettingsError(f"HOLDFAST_LOG_LEVEL is {level[:40]!r}; allowed: {' | '.join(LOG_LEVELS)}")
    return level


def _add_group(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser], group: str, found: dict[str, str]
) -> None:
    caption = GROUPS.get(group, "")
    parser = subparsers.add_parser(
        group, help=caption, description=caption, formatter_class=_lines(argparse.HelpFormatter)
    )
    parser.set_defaults(parser=parser)
    members = parser.add_subparsers(metavar="COMMAND", title="commands")
    for name in sorted(found):
        if name.startswith(f"{group}."):
            _add_command(members, name.split(".", 1)[1], found[name])


def _add_command(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], name: str, where: str) -> None:
    try:
        command = load_object(where)
    except ModuleNotFoundError as error:
        missing = missing_extra(error)
        if missing is None:
            raise
        subparsers.add_parser(name, help=f"(not installed: {missing})", formatter_class=_lines(argparse.HelpFormatter))
        return
    if not isinstance(command, Command):
        raise RuntimeError(f"entry point {where} is not a Command")
    parser = subparsers.add_parser(
        name,
        help=command.help,
        description=command.description or command.help,
        formatter_class=_lines(argparse.RawDescriptionHelpFormatter),
    )
    command.add_arguments(parser)
    parser.set_defaults(command=command, parser=parser)


def _lines(formatter: type[argparse.HelpFormatter]) -> partial[argparse.HelpFormatter]:
    """The formatter with the width that it finds by itself otherwise, with `shutil`: 0.5 MB for formats of archives."""
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns) > 0:
        return partial(formatter, width=int(columns) - MARGIN_COLUMNS)
    try:
        found = os.get_terminal_size(sys.__stdout__.fileno()).columns if sys.__stdout__ is not None else 0
    except (ValueError, OSError):  # closed, or no terminal
        found = 0
    return partial(formatter, width=(found or DEFAULT_COLUMNS) - MARGIN_COLUMNS)
