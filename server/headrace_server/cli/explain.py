"""`headrace explain`: what a model's batches cost, which are worth it, how the last ones went."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace.access import Access
from headrace.explanations import Activity, CostCurve, LearnedPlan, ModelExplanation, Quantiles
from headrace_server.cli.batch_ranges import by_range
from headrace_server.cli.connection import connected
from headrace_server.cli.errors import CommandError
from headrace_server.cli.output import print_json, result_console, table
from headrace_server.cli.pictures import check_picture

BAR_COLUMNS = 30


def explain(
    model: str,
    *,
    version: str,
    address: str,
    access: Access,
    timeout: float,
    as_json: bool,
    plot: Path | None,
) -> None:
    """Ask a running server, print the answer, and draw it into the file `plot` if one is given;
    `timeout` is in seconds.

    Raises:
        CommandError: the call fails, or the picture cannot be drawn or written.
    """
    if plot is not None:
        check_picture("explain", plot)
    with connected(address, timeout, access) as client:
        explanation = client.explain(model, version)
    if plot is not None:
        from headrace_server.cli.explain_plot import draw

        try:
            draw(explanation, plot)
        except OSError as error:
            raise CommandError(f"cannot write {plot}: {error.strerror}") from None
    if as_json:
        print_json(_json(explanation))
    else:
        _print(explanation, result_console())


# -- sentences --------------------------------------------------------------------------------


def where_batching_pays(explanation: ModelExplanation) -> str:
    """One sentence: up to how many rows a batch does more work per second, and how much more."""
    plan = explanation.plan
    if explanation.max_batch_size == 0:
        return "The model has no batch dimension: its requests run one at a time."
    if explanation.max_batch_size == 1:
        return "Batching is switched off (max_batch_size is 1): requests run one at a time."
    if plan is None:
        return (
            "Fixed rules form the batches (dynamic_batching in config.pbtxt): "
            "they know no costs, so there is no curve."
        )
    if not plan.curves:
        return (
            "Nothing is known of durations yet: no batch was timed when the model was loaded, "
            "and none was served. Until then whoever waits rides."
        )
    pays = [curve for curve in plan.curves if curve.enough_rows > 1]
    if not pays:
        return "Batching gains nothing here, so nobody waits for it."
    first, *others = pays
    sentence = f"Batching pays {_reach(first, explanation.max_batch_size)}: "
    sentence += f"{first.enough_gain:.1f}x the work per second of single rows"
    if others:
        last = others[-1]
        sentence += f"; {_reach(last, explanation.max_batch_size)}: {last.enough_gain:.1f}x"
    rest = [str(curve.length) for curve in plan.curves if curve.enough_rows == 1]
    if rest:
        sentence += f"; at length {', '.join(rest)} it gains nothing, so nobody waits for it"
    return sentence + "."


def _reach(curve: CostCurve, most_rows: int) -> str:
    """`up to about 16 rows at length 32`."""
    rows = curve.enough_rows
    reach = f"all the way to {rows} rows" if rows == most_rows else f"up to about {rows} rows"
    return f"{reach} at length {curve.length}" if curve.length else reach


def _milliseconds(seconds: float) -> str:
    """Three digits, and never an exponent."""
    ms = seconds * 1e3
    return f"{ms:,.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


# -- tables -----------------------------------------------------------------------------------


def _print(explanation: ModelExplanation, console: Console) -> None:
    name = f"{explanation.name} {explanation.version}"
    console.print(Text.assemble((name, "bold"), "  ", where_batching_pays(explanation)))
    plan = explanation.plan
    if plan is not None and plan.curves:
        _print_curves(plan, console)
    _print_activity(explanation.last_minute, console)


def _print_curves(plan: LearnedPlan, console: Console) -> None:
    """What a batch is expected to take, by rows and length; then the batch that is enough."""
    curves = plan.curves
    by_length = any(curve.length for curve in curves)
    headers = ["rows"]
    for curve in curves:
        headers += [f"length {curve.length}\nms" if by_length else "ms", "gain"]
    expected = table(*headers, numbers=headers)
    for at, rows in enumerate(curves[0].rows):
        if rows & (rows - 1) == 0 or rows == curves[0].rows[-1]:  # doublings, and the largest
            cells = [f"{rows:,}"]
            for curve in curves:
                cells += [_milliseconds(curve.durations_s[at]), f"{curve.gains[at]:.2f}x"]
            expected.add_row(*cells)
    headers = ["enough rows", "ms", "19 of 20 within ms", "gain", "rows/s of a worker"]
    if by_length:
        headers.insert(0, "length")
    enough = table(*headers, numbers=headers)
    for curve in curves:
        cells = [
            f"{curve.enough_rows:,}",
            _milliseconds(curve.enough_s),
            _milliseconds(curve.enough_s * plan.margin),
            f"{curve.enough_gain:.2f}x",
            f"{curve.enough_rows / curve.enough_s:,.0f}",
        ]
        enough.add_row(*([str(curve.length)] if by_length else []), *cells)
    console.print("\nWhat a batch is expected to take, and its work per second beside single rows:")
    console.print(expected)
    equal = " of equal length" if by_length else ""
    console.print(
        f"The smallest batch of requests{equal} that does {plan.worthwhile:.0%} of the best one's "
        "work per second is enough:"
    )
    console.print(enough)


def _print_activity(minute: Activity, console: Console) -> None:
    console.print()
    rows = sum(n * batches for n, batches in minute.batch_rows.items())
    facts = [f"{minute.batches:,} batches", f"{minute.requests:,} requests", f"{rows:,} rows"]
    if minute.padding_share:
        facts.append(f"{minute.padding_share:.1%} padding")
    if minute.cancelled:
        facts.append(f"{minute.cancelled:,} requests cancelled")
    console.print(Text.assemble(("Last minute", "bold"), "  ", ", ".join(facts)))
    if minute.batches:
        console.print(_histogram(minute.batch_rows))
    if minute.dispatches:
        console.print(_counts("left the queue because", "batches", minute.dispatches))
    if minute.refusals:
        console.print(_counts("refused or failed because", "requests", minute.refusals))
    times = table("", "p5", "p50", "p95", "p99", numbers=("p5", "p50", "p95", "p99"))
    for name, quantiles in (
        ("in the queue, ms", minute.queue_s),
        ("compute, ms", minute.compute_s),
    ):
        if quantiles is not None:
            times.add_row(name, *(_milliseconds(value) for value in _values(quantiles)))
    if minute.prediction_ratio is not None:
        ratios = (f"{value:.2f}" for value in _values(minute.prediction_ratio))
        times.add_row("expected over actual duration", *ratios)
    if times.row_count:
        console.print(times)


def _histogram(batch_rows: Mapping[int, int]) -> Table:
    """Batches by rows, with bars."""
    ranges = by_range(batch_rows)
    most = max(batches for _, batches in ranges)
    histogram = table("rows", "batches", "", numbers=("rows", "batches"))
    for rows, batches in ranges:
        histogram.add_row(rows, f"{batches:,}", "█" * round(BAR_COLUMNS * batches / most))
    return histogram


def _counts(what: str, of: str, counts: Mapping[str, int]) -> Table:
    listed = table(what, of, numbers=(of,))
    for reason, count in counts.items():
        listed.add_row(reason, f"{count:,}")
    return listed


def _values(quantiles: Quantiles) -> tuple[float, float, float, float]:
    return quantiles.p5, quantiles.p50, quantiles.p95, quantiles.p99


# -- JSON -------------------------------------------------------------------------------------


def _json(explanation: ModelExplanation) -> dict[str, Any]:
    """Everything, with the sentence and the gains that follow from it."""
    written = asdict(explanation)
    if explanation.plan is not None:
        for curve, entry in zip(explanation.plan.curves, written["plan"]["curves"], strict=True):
            entry["gains"] = curve.gains
    return {"summary": where_batching_pays(explanation), **written}
