"""Logs: what a log line looks like, and where it goes.  Blocking.

Owns: the text and the JSON line, the priorities that journald reads, the system's log of a mount in the background.
Does not know: who logs what.
Formats: time is RFC 3339 in UTC; `<N>` before a line is sd-daemon(3)'s priority.
"""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import TextIO

SYSLOG_SOCKET = "/dev/log"

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_COLOURS = {logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[1;31m"}
_PLAIN_COLOUR = "\033[0m"

_STANDARD_FIELDS = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}
"""What every record has; any other attribute came by `extra`."""

_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(32), 127)}
"""A file name in a message must not be able to begin a line of its own."""


class TextFormatter(logging.Formatter):
    """`time LEVEL logger: message key=value`, and the traceback on lines of its own.

    Args:
        has_time: false where whoever takes the line puts a time to it.
        has_priority: whether each line starts with `<N>`.
        is_coloured: for a terminal.
    """

    def __init__(self, has_time: bool = True, has_priority: bool = False, is_coloured: bool = False) -> None:
        super().__init__()
        self._has_time = has_time
        self._has_priority = has_priority
        self._is_coloured = is_coloured

    def format(self, record: logging.LogRecord) -> str:
        level = record.levelname
        if self._is_coloured and record.levelno in _COLOURS:
            level = f"{_COLOURS[record.levelno]}{level}{_PLAIN_COLOUR}"
        fields = "".join(f" {name}={value}" for name, value in _extras(record).items())
        said = f"{record.name}: {record.getMessage()}{fields}".translate(_CONTROLS)
        lines = [f"{_time(record)} {level} {said}" if self._has_time else f"{level} {said}"]
        if record.exc_info and record.exc_info[0] is not None:
            lines += "".join(traceback.format_exception(*record.exc_info)).splitlines()
        prefix = f"<{_priority(record)}>" if self._has_priority else ""
        return "\n".join(prefix + line for line in lines)


class JsonFormatter(logging.Formatter):
    """One object a line: time, level, logger, message, the extra fields, exception."""

    def __init__(self, has_priority: bool = False) -> None:
        super().__init__()
        self._has_priority = has_priority

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields = fields | _extras(record) | fields
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
        line = json.dumps(fields, default=str)
        return f"<{_priority(record)}>{line}" if self._has_priority else line


def configure(
    level: str, log_format: str, environment: Mapping[str, str], stream: TextIO | None = None, to_syslog: bool = False
) -> None:
    """Send the log to `stream` (standard error), or to the system's log."""
    handler: logging.Handler
    if to_syslog:
        # It brings pickle and more, which every other mount does without.
        from logging.handlers import SysLogHandler

        handler = SysLogHandler(SYSLOG_SOCKET, SysLogHandler.LOG_DAEMON)
        handler.ident = f"tagfs[{os.getpid()}]: "
        handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter(has_time=False))
    else:
        stream = sys.stderr if stream is None else stream
        handler = logging.StreamHandler(stream)
        in_journal = is_journal(stream, environment)
        if log_format == "json":
            handler.setFormatter(JsonFormatter(in_journal))
        else:
            colours = _is_terminal(stream) and "NO_COLOR" not in environment
            handler.setFormatter(TextFormatter(not in_journal, in_journal, colours))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    # A log that cannot be written (a closed pipe, a full disk) must not end in tracebacks on whatever is left open.
    logging.raiseExceptions = level == "debug"


def tally() -> Mapping[str, int]:
    """Count from now on what is logged: level -> lines, of those that somebody should read."""
    counter = _Tally()
    logging.getLogger().addHandler(counter)
    return counter.counts


class _Tally(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts = {"warning": 0, "error": 0}

    def emit(self, record: logging.LogRecord) -> None:
        self.counts["error" if record.levelno >= logging.ERROR else "warning"] += 1


def is_journal(stream: TextIO | None, environment: Mapping[str, str]) -> bool:
    """Whether `stream` is journald's: JOURNAL_STREAM names its device and inode (systemd.exec(5))."""
    expected = environment.get("JOURNAL_STREAM")
    if not expected or stream is None:
        return False
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return expected == f"{status.st_dev}:{status.st_ino}"


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:
        return False


def _time(record: logging.LogRecord) -> str:
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.created * 1000) % 1000:03}Z"


def _priority(record: logging.LogRecord) -> int:
    return _PRIORITIES.get(record.levelno, 6)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}
