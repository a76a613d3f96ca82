"""How the log reads: one line an event, with its fields as `name=value` behind it.

The event is a constant sentence; what varies are the fields that the caller gave as `extra`. Control characters in
values are escaped, so that data cannot write lines of its own.
"""

from __future__ import annotations

import logging

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
MAX_VALUE_CHARACTERS = 500


class FieldFormatter(logging.Formatter):
    """Appends the fields of a record to its line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # the name logging calls
        fields = {name: value for name, value in vars(record).items() if name not in _STANDARD}
        shown = " ".join(f"{name}={_plain(value)}" for name, value in sorted(fields.items()))
        line = super().formatMessage(record)
        return f"{line}  {shown}" if shown else line


def set_up_logging(level: str) -> None:
    """Send all logging to standard error in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(FieldFormatter())
    logging.basicConfig(level=level, handlers=[handler])


def _plain(value: object) -> str:
    text = str(value)[:MAX_VALUE_CHARACTERS]
    return text if text.isprintable() and " " not in text else repr(text)
