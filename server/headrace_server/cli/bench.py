"""`headrace bench`: sends load to a running server and reports how it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from rich.console import Console
from rich.status import Status

from headrace import Client
from headrace.answers import ModelMetadata
from headrace.errors import HeadraceError, InvalidRequest, Unimplemented
from headrace_server.bench.fleet import Fleet, GeneratorLostError
from headrace_server.bench.inputs import check_shapes, parse_shape, serialised, synthetic
from headrace_server.bench.orders import Setup
from headrace_server.bench.plan import Load
from headrace_server.bench.results import Step, Window
from headrace_server.bench.sweep import Bench, Snapshot
from headrace_server.bench.transport import probe
from headrace_server.cli.bench_options import Options, loads_of
from headrace_server.cli.bench_report import StepTable, explanations, report
from headrace_server.cli.connection import connected
from headrace_server.cli.errors import USAGE, CommandError
from headrace_server.cli.output import result_console
from headrace_server.cli.samples import read_samples

CALL_TIMEOUT_S = 10.0
"""For the calls about the model; those that are measured have their own."""


def bench(options: Options) -> bool:
    """Measure each step of the load and print a row for it; returns whether all of them were
    measured, False after Ctrl-C.

    Raises:
        CommandError: the options do not fit the model, the server does not answer, or there was
            a step in which it answered nothing.
    """
    loads = loads_of(options)
    with connected(options.address, CALL_TIMEOUT_S, options.access) as client:
        requests = _requests(client, options)
        steps = _measure(client, options, loads, requests)
    if not steps:
        return False
    _write(options, steps)
    last = steps[-1]
    if _silent(last) and not last.interrupted:
        reasons = ", ".join(f"{count} {reason}" for reason, count in last.errors.items())
        raise CommandError(f"no request was answered at {last.load}: {reasons or 'none was sent'}")
    return len(steps) == len(loads) and not last.interrupted


def _requests(client: Client, options: Options) -> list[bytes]:
    """What is sent, one after the other. The first one has been answered once."""
    metadata = client.model_metadata(options.model, options.version)
    batched = _is_batched(client, metadata, options.version)
    if not batched and options.rows > 1:
        raise CommandError(
            f"model '{options.model}' has no batch dimension: expected --rows 1, "
            f"got {options.rows}",
            USAGE,
        )
    try:
        if options.input_file is not None:
            samples = read_samples(options.input_file, metadata, batched=batched)
        else:
            shapes = dict(parse_shape(text) for text in options.shapes)
            check_shapes(metadata, batched, shapes)
            samples = synthetic(
                metadata, batched=batched, rows=options.rows, shapes=shapes, seed=options.seed
            )
        requests = serialised(
            metadata, samples, batched=batched, rows=options.rows, version=options.version
        )
    except ValueError as error:
        raise CommandError(str(error), USAGE) from None
    try:
        probe(options.address, requests[0], options.timeout, options.access)
    except InvalidRequest as error:
        hint = "" if options.input_file else "; see --shape and --input"
        raise CommandError(f"the model refuses the inputs: {error}{hint}") from None
    return requests


def _is_batched(client: Client, metadata: ModelMetadata, version: str) -> bool:
    try:
        return client.model_config(metadata.name, version).max_batch_size > 0
    except Unimplemented:  # not every server of the protocol has this call
        return all(tensor.shape[:1] == (-1,) for tensor in metadata.inputs)


def _measure(
    client: Client, options: Options, loads: Sequence[Load], requests: Sequence[bytes]
) -> list[Step]:
    """The steps that were measured. Ctrl-C ends them, and a step in which nothing is answered."""
    console = result_console()
    progress = _Progress(console)
    table = StepTable(loads[0], options.rows)
    steps: list[Step] = []

    def statistics() -> Snapshot:
        try:
            return client.statistics(options.model, options.version)
        except HeadraceError:  # the load itself shows what is wrong with the server
            return None

    try:
        with progress, Fleet(_setups(options, requests)) as fleet:
            console.print(table.header(), style="bold", soft_wrap=True)
            run = Bench(fleet, options.timing, options.timeout, statistics, progress.show)
            for step in run.run(loads):
                steps.append(step)
                console.print(table.row(step), soft_wrap=True)
                if _silent(step):
                    break
    except KeyboardInterrupt:
        pass  # what there is so far is the result
    except GeneratorLostError as error:
        raise CommandError(str(error)) from None
    for line in explanations(steps):
        console.print(line, style="dim", soft_wrap=True)
    return steps


def _setups(options: Options, requests: Sequence[bytes]) -> list[Setup]:
    return [
        Setup(
            options.address,
            options.transport,
            options.timeout,
            requests,
            index,
            options.processes,
            options.seed,
            options.access,
        )
        for index in range(options.processes)
    ]


def _silent(step: Step) -> bool:
    return not step.throughput


def _write(options: Options, steps: Sequence[Step]) -> None:
    try:
        if (file := options.json_file) is not None:
            file.write_text(report(options, steps) + "\n")
        if (file := options.plot_file) is not None:
            from headrace_server.cli.bench_plot import draw

            draw(steps, f"{options.model} at {options.address}", file)
    except OSError as error:
        raise CommandError(f"cannot write {file}: {error.strerror}") from None


class _Progress:
    """One line on a terminal about the step that is running; nothing where there is no terminal."""

    def __init__(self, results: Console) -> None:
        consoles = (results, Console(stderr=True))
        console = next((console for console in consoles if console.is_terminal), None)
        self._status = None if console is None else Status("starting", console=console)

    def __enter__(self) -> None:
        (self._status or nullcontext()).__enter__()

    def __exit__(self, *raised: object) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, load: Load, windows: Sequence[Window]) -> None:
        """The latest window."""
        if self._status is None:
            return
        text = "warming up"
        if windows:
            last = windows[-1]
            text = f"{last.throughput:,.0f}/s in window {len(windows)}"
            if last.throughput:
                text += f", p99 {last.p99_s * 1e3:,.1f} ms"
        self._status.update(f"{load}: {text}")
