"""What `headrace models` lists of a server: models that come and go, and why one is broken."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from headrace.access import OPEN_ACCESS
from headrace.answers import Duration, IndexEntry, ModelMetadata, ModelStatistics
from headrace.errors import NotFound, ServerError, Unavailable
from headrace_server.cli import models

NOTHING = Duration(0, 0)
WHY = "expected a file, found none, " * 8


class Answers:
    """A client of a server that lists two models; of `gone` it knows no more than `error` says."""

    def __init__(self, error: ServerError) -> None:
        self._error = error

    def statistics(self) -> list[ModelStatistics]:
        return [
            ModelStatistics(name, "1", 0, 0, 0, *[NOTHING] * 8, batch_stats=())
            for name in ("gone", "here")
        ]

    def index(self) -> list[IndexEntry]:
        ready = [IndexEntry(name, "1", "READY", "") for name in ("gone", "here")]
        return [*ready, IndexEntry("broken", "", "UNAVAILABLE", WHY)]

    def model_metadata(self, model: str, version: str) -> ModelMetadata:
        if model == "gone":
            raise self._error
        return ModelMetadata(model, (version,), "python", (), ())


def listed(monkeypatch: pytest.MonkeyPatch, error: ServerError, *, as_json: bool = True) -> None:
    @contextmanager
    def connected(*_: object) -> Iterator[Answers]:
        yield Answers(error)

    monkeypatch.setattr(models, "connected", connected)
    models.models("nowhere:1", OPEN_ACCESS, timeout=1.0, as_json=as_json)


@pytest.mark.parametrize(
    "error",
    [
        NotFound(grpc.StatusCode.NOT_FOUND, "no model 'gone'", "unknown_model"),
        NotFound(grpc.StatusCode.NOT_FOUND, "Request for unknown model: 'gone' is not found"),
        Unavailable(grpc.StatusCode.UNAVAILABLE, "unloading", "model_unavailable"),
    ],
)
def test_a_model_that_was_unloaded_meanwhile_is_a_row_without_details(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: ServerError
) -> None:
    listed(monkeypatch, error)
    rows = json.loads(capsys.readouterr().out)
    assert [(row["model"], row["state"], row["platform"]) for row in rows] == [
        ("gone", "READY", None),
        ("here", "READY", "python"),
        ("broken", "UNAVAILABLE", None),
    ]


def test_a_server_that_went_meanwhile_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unavailable):
        listed(monkeypatch, Unavailable(grpc.StatusCode.UNAVAILABLE, "connection refused"))


def test_why_a_model_is_not_ready_is_told_below_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listed(monkeypatch, NotFound(grpc.StatusCode.NOT_FOUND, "gone", "gone"), as_json=False)
    table, told = capsys.readouterr().out.split("broken: ")
    assert told == f"{WHY}\n"
    assert "broken" in table
    assert WHY.strip() not in table
