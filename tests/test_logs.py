"""Logs: what a line looks like in a terminal, a pipe, a journal and JSON."""

import io
import json
import logging
import os
import pty
import re
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tagfs import logs
from tagfs.logs import JsonFormatter, TextFormatter


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, raises = root.handlers[:], root.level, logging.raiseExceptions
    yield
    for handler in root.handlers[:]:
        if handler not in handlers:
            root.removeHandler(handler)
            handler.close()
    for handler in handlers:
        if handler not in root.handlers:
            root.addHandler(handler)
    root.setLevel(level)
    logging.raiseExceptions = raises


def record(message: str, level: int = logging.INFO, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("tagfs.store", level, __file__, 1, message, (), None)
    made.created = 1_700_000_000.25
    vars(made).update(extra)
    return made


def failed() -> logging.LogRecord:
    made = record("no luck", logging.ERROR)
    try:
        raise OSError(5, "Input/output error")
    except OSError:
        made.exc_info = sys.exc_info()
    return made


def test_text_has_time_level_logger_message_and_extra_fields() -> None:
    text = TextFormatter().format(record("stored", key="a/b", size=3))
    assert text == "2023-11-14T22:13:20.250Z INFO tagfs.store: stored key=a/b size=3"


def test_a_message_cannot_begin_a_line_of_its_own_nor_colour_it() -> None:
    text = TextFormatter().format(record("name a\nERROR x: b\x1b[31m"))
    assert text.endswith("name a\\x0aERROR x: b\\x1b[31m")


def test_each_line_of_a_traceback_has_the_priority() -> None:
    lines = TextFormatter(has_time=False, has_priority=True).format(failed()).splitlines()
    assert lines[0] == "<3>ERROR tagfs.store: no luck"
    assert len(lines) > 2
    assert all(line.startswith("<3>") for line in lines)


@pytest.mark.parametrize(
    ("level", "priority"),
    [(logging.DEBUG, 7), (logging.INFO, 6), (logging.WARNING, 4), (logging.ERROR, 3), (logging.CRITICAL, 2)],
)
def test_priorities_are_those_of_syslog(level: int, priority: int) -> None:
    assert TextFormatter(has_priority=True).format(record("x", level)).startswith(f"<{priority}>")
    assert JsonFormatter(has_priority=True).format(record("x", level)).startswith(f"<{priority}>{{")


def test_json_is_one_object_a_line() -> None:
    line = JsonFormatter().format(record("two\nlines", size=3, path=Path("/a")))
    assert "\n" not in line
    fields = json.loads(line)
    assert list(fields)[:4] == ["time", "level", "logger", "message"]
    assert fields["level"] == "info"
    assert fields["message"] == "two\nlines"
    assert fields["size"] == 3
    assert fields["path"] == "/a"
    assert datetime.fromisoformat(fields["time"]).timestamp() == 1_700_000_000.25


def test_json_has_the_exception() -> None:
    assert "Input/output error" in json.loads(JsonFormatter().format(failed()))["exception"]


def test_an_extra_field_cannot_take_the_place_of_a_fixed_one() -> None:
    fields = json.loads(JsonFormatter().format(record("x", time="never", logger="none")))
    assert fields["time"].startswith("2023-")
    assert fields["logger"] == "tagfs.store"


def test_no_colours_in_a_pipe() -> None:
    stream = io.StringIO()
    logs.configure("info", "text", {}, stream)
    logging.getLogger("x").error("bad")
    assert "\x1b" not in stream.getvalue()
    assert re.fullmatch(r"20\S+Z ERROR x: bad\n", stream.getvalue())


@pytest.mark.parametrize(("environment", "is_coloured"), [({}, True), ({"NO_COLOR": ""}, False)])
def test_colours_on_a_terminal(environment: dict[str, str], is_coloured: bool) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as stream, os.fdopen(controller, "rb", buffering=0) as seen:
        logs.configure("info", "text", environment, stream)
        logging.getLogger("x").error("bad")
        assert (b"\x1b[31mERROR" in seen.read(1000)) is is_coloured


def test_levels_below_are_left_out() -> None:
    stream = io.StringIO()
    logs.configure("warning", "text", {}, stream)
    logging.getLogger("x").info("unseen")
    logging.getLogger("x").warning("seen")
    assert stream.getvalue().count("\n") == 1


def test_configuring_twice_does_not_double_a_line() -> None:
    stream = io.StringIO()
    logs.configure("info", "text", {}, stream)
    logs.configure("info", "json", {}, stream)
    logging.getLogger("x").info("once")
    assert stream.getvalue().count("once") == 1


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path) -> None:
    with open(tmp_path / "journal", "w+") as stream:
        status = os.fstat(stream.fileno())
        right = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert logs.is_journal(stream, right)
        assert not logs.is_journal(stream, {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino + 1}"})
        assert not logs.is_journal(stream, {})
        assert not logs.is_journal(io.StringIO(), right)
        assert not logs.is_journal(None, right)
        logs.configure("info", "text", right, stream)
        logging.getLogger("x").warning("careful")
        stream.seek(0)
        assert stream.read() == "<4>WARNING x: careful\n"


def test_a_log_that_cannot_be_written_is_no_error(capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as stream:
        logs.configure("info", "text", {}, stream)
        logging.getLogger("x").error("lost")
        logging.getLogger().handlers[0].close()
        assert capsys.readouterr().err == ""
        with pytest.raises(OSError):
            stream.close()
