"""Log lines, read back as the programs that collect them do."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Literal

import pytest

from headrace_server.telemetry import logs

log = logging.getLogger("headrace.test")


@pytest.fixture(autouse=True)
def untouched_root() -> Iterator[None]:
    """`configure` replaces the handlers of the root logger: give them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # or `force=True` would close what belongs to others
    yield
    root.handlers, root.level = handlers, level


def written(style: Literal["text", "json"], level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(style, level, stream)
    return stream


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_each_json_line_is_an_object_with_the_event_and_its_fields() -> None:
    stream = written("json")
    log.info("server ready", extra={"grpc": "127.0.0.1:8001", "workers": 2})
    (line,) = parsed(stream)
    moment = datetime.fromisoformat(line.pop("time"))
    assert moment.tzinfo is not None
    assert abs((datetime.now(UTC) - moment).total_seconds()) < 60
    assert line == {
        "level": "info",
        "logger": "headrace.test",
        "event": "server ready",
        "grpc": "127.0.0.1:8001",
        "workers": 2,
    }


def test_newlines_quotes_and_exceptions_stay_in_one_json_line() -> None:
    stream = written("json")
    try:
        raise ValueError('a "quoted"\nproblem')
    except ValueError:
        log.exception("line one\nline %d, «two»", 2)
    (line,) = parsed(stream)
    assert line["event"] == "line one\nline 2, «two»"
    assert line["level"] == "error"
    assert 'ValueError: a "quoted"\nproblem' in line["exception"]


def test_fields_that_json_does_not_know_are_written_as_text() -> None:
    stream = written("json")
    log.warning("odd", extra={"addresses": {1}, "kind": UTC})
    (line,) = parsed(stream)
    assert (line["addresses"], line["kind"]) == ("{1}", "UTC")


def test_text_lines_hold_level_text_and_fields() -> None:
    stream = written("text")
    log.warning("port %d is busy", 8001, extra={"next": 8002})
    assert stream.getvalue().endswith(" WARNING port 8001 is busy next=8002\n")


@pytest.mark.parametrize("style", ["text", "json"])
def test_lines_below_the_level_are_not_written(style: Literal["text", "json"]) -> None:
    stream = written(style, "warning")
    log.info("chatter")
    log.warning("matter")
    assert "matter" in stream.getvalue()
    assert "chatter" not in stream.getvalue()


def test_configuring_again_replaces_the_style() -> None:
    before = written("json")
    after = written("text")
    log.info("once")
    assert before.getvalue() == ""
    assert after.getvalue().count("once") == 1
