"""`headrace models`: what a running server serves, and what it has done so far."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rich.text import Text

from headrace import Client
from headrace.access import Access
from headrace.answers import IndexEntry, ModelStatistics
from headrace.errors import NotFound, Unavailable
from headrace_server.cli.connection import connected
from headrace_server.cli.output import print_json, result_console, state_text, table


@dataclass(frozen=True, slots=True)
class Row:
    """One version of a model. Counts and means are None until something was counted."""

    model: str
    version: str
    state: str
    reason: str
    platform: str | None = None
    requests: int | None = None
    batches: int | None = None
    mean_batch_rows: float | None = None
    mean_compute_ms: float | None = None


def models(address: str, access: Access, *, timeout: float, as_json: bool) -> None:
    """Print one line for each version; `timeout` is in seconds, for each call.

    Raises:
        CommandError: a call fails.
    """
    with connected(address, timeout, access) as client:
        statistics = {(entry.name, entry.version): entry for entry in client.statistics()}
        rows = [
            _row(client, entry, statistics.get((entry.name, entry.version)))
            for entry in client.index()
        ]
    if as_json:
        print_json([asdict(row) for row in rows])
    else:
        _print(rows)


def _row(client: Client, entry: IndexEntry, counted: ModelStatistics | None) -> Row:
    bare = Row(entry.name, entry.version, entry.state, entry.reason)
    if entry.state != "READY" or counted is None:
        return bare
    try:
        metadata = client.model_metadata(entry.name, entry.version)
    except NotFound:  # it was unloaded since, and is gone
        return bare
    except Unavailable as error:
        if error.reason is None:  # nobody answers
            raise
        return bare
    batches = sum(size.compute_infer.count for size in counted.batch_stats)
    compute_ns = sum(size.compute_infer.ns for size in counted.batch_stats)
    executions = counted.execution_count
    return Row(
        entry.name,
        entry.version,
        entry.state,
        entry.reason,
        platform=metadata.platform,
        requests=counted.success.count,
        batches=executions,
        mean_batch_rows=counted.inference_count / executions if executions else None,
        mean_compute_ms=compute_ns / batches / 1e6 if batches else None,
    )


def _print(rows: list[Row]) -> None:
    numbers = ("requests", "batches", "rows per batch", "ms per batch")
    listed = table("model", "version", "state", "platform", *numbers, numbers=numbers)
    for row in rows:
        listed.add_row(
            Text(row.model),
            row.version,
            state_text(row.state),
            row.platform or "",
            _shown(row.requests),
            _shown(row.batches),
            _shown(row.mean_batch_rows, digits=1),
            _shown(row.mean_compute_ms, digits=2),
        )
    console = result_console()
    console.print(listed)
    for row in rows:
        if row.reason:  # below, since it may be long
            name = f"{row.model} {row.version}".strip()
            console.print(Text.assemble((name, "bold red"), ": ", row.reason), soft_wrap=True)


def _shown(number: float | None, digits: int = 0) -> str:
    return "" if number is None else f"{number:,.{digits}f}"
