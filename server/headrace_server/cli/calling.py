"""The commands that call a running server: their arguments, flags and help.

As in `commands`, what a command does is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from headrace_server.cli.errors import FAILED
from headrace_server.cli.options import (
    DEFAULT_ADDRESS,
    Address,
    Json,
    ModelName,
    Timeout,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    Version,
    WithTls,
    in_range,
)

app = typer.Typer()


@app.command()
def infer(
    model: ModelName,
    values: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="VALUE",
            help="Rows of the model's only input: text where it takes BYTES, else JSON; "
            "or @FILE, which ends in .npy, .json or .txt (one text).",
            show_default=False,
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="NAME=VALUE",
            help="One input as a whole, VALUE as above; once for each input. "
            "Leading dimensions of 1 may be left out.",
            show_default=False,
        ),
    ] = None,
    json_input: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="JSON object from input names to nested lists; - is standard input.",
            show_default=False,
        ),
    ] = None,
    zeros: Annotated[
        bool,
        typer.Option(
            "--zeros",
            help="Fill the inputs that are not given with zeros or empty text; "
            "dynamic dimensions are 1.",
        ),
    ] = False,
    version: Version = "",
    address: Address = DEFAULT_ADDRESS,
    tls: WithTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    timeout: Timeout = 60.0,
    as_json: Json = False,
) -> None:
    """Send one request to a running server and print the answer."""
    from headrace_server.cli.connection import access_from
    from headrace_server.cli.infer import infer

    access = access_from(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token_file=token_file)
    infer(
        model,
        values or [],
        inputs or [],
        json_input,
        zeros=zeros,
        version=version,
        address=address,
        access=access,
        timeout=timeout,
        as_json=as_json,
    )


@app.command()
def models(
    address: Address = DEFAULT_ADDRESS,
    tls: WithTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """List the models of a running server, with their states and what they have done so far."""
    from headrace_server.cli.connection import access_from
    from headrace_server.cli.models import models

    access = access_from(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token_file=token_file)
    models(address, access, timeout=timeout, as_json=as_json)


@app.command()
def load(
    model: ModelName,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file that takes the place of the model's config.pbtxt for this load.",
            show_default=False,
        ),
    ] = None,
    address: Address = DEFAULT_ADDRESS,
    tls: WithTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    timeout: Timeout = 900.0,
) -> None:
    """Have a running server load a model, or load it again while it serves.

    The server runs with --model-control-mode explicit. Whatever goes wrong changes nothing.
    """
    from headrace_server.cli.connection import access_from
    from headrace_server.cli.control import load

    access = access_from(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token_file=token_file)
    load(model, config, address=address, access=access, timeout=timeout)


@app.command()
def unload(
    model: ModelName,
    address: Address = DEFAULT_ADDRESS,
    tls: WithTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
) -> None:
    """Have a running server unload a model once it has answered what it was asked."""
    from headrace_server.cli.connection import access_from
    from headrace_server.cli.control import unload

    access = access_from(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token_file=token_file)
    unload(model, address=address, access=access, timeout=timeout)


@app.command()
def explain(
    model: ModelName,
    version: Version = "",
    address: Address = DEFAULT_ADDRESS,
    tls: WithTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Draw it too, into a file that ends in .png, .svg or .pdf (needs the plot extra).",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Say what batches of a model cost, where batching pays, and how the last minute's went."""
    from headrace_server.cli.connection import access_from
    from headrace_server.cli.explain import explain

    access = access_from(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token_file=token_file)
    explain(
        model,
        version=version,
        address=address,
        access=access,
        timeout=timeout,
        as_json=as_json,
        plot=plot,
    )


class _NumberLists(TyperCommand):
    """A command whose `--concurrency` and `--rate` take numbers up to the next word that is none:
    `--concurrency 1 8 64`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The arguments with such numbers as one, `1 8 64`."""
        joined: list[str] = []
        collecting = False
        for word in args:
            numeric = word.replace(",", "").replace(".", "").isdigit()
            if numeric and collecting and joined[-1] not in LIST_FLAGS:
                joined[-1] += f" {word}"
            else:
                joined.append(word)
                collecting = word in LIST_FLAGS or (numeric and collecting)
        return super().parse_args(ctx, joined)


LIST_FLAGS = ("--concurrency", "--rate")


@app.command(cls=_NumberLists)
def bench(
    model: ModelName,
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N...",
            help="Closed loop: so many callers, each with one request under way; "
            "one step for each number (1 2 4 8 16 32 64 unless --rate is given).",
            show_default=False,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            metavar="R...",
            help="Open loop: so many requests per second, answered or not; one step for each "
            "number. Latency counts from the moment a request was due.",
            show_default=False,
        ),
    ] = None,
    arrivals: Annotated[
        str,
        typer.Option(
            help="When open-loop requests are due: poisson, constant, gamma:CV (CV above 1 is "
            "bursty), or trace:FILE, a time in seconds on each line, replayed at its own rate "
            "or scaled to --rate."
        ),
    ] = "poisson",
    transport: Annotated[
        str,
        typer.Option(
            help="How requests travel: unary, or stream, where they share streams as those of a "
            "client with multiplex=True do."
        ),
    ] = "unary",
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            metavar="FILE",
            help="Real inputs, sent in turn. .npz: an array for each input, samples first; "
            ".json: an object from inputs to lists of samples; .jsonl: an object from inputs to "
            "one sample on each line; .txt: a text on each line, for a model that takes one "
            "BYTES input. A sample is one row.",
            show_default=False,
        ),
    ] = None,
    shapes: Annotated[
        list[str] | None,
        typer.Option(
            "--shape",
            metavar="INPUT:LENGTH",
            help="Dynamic dimensions of a synthetic input: 128, or 8..128 for an even spread, "
            "or 224,224 for two; for BYTES the words of each text. By default 16. "
            "Once for each input.",
            show_default=False,
        ),
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows in each request.", min=1)] = 1,
    version: Version = "",
    address: Address = DEFAULT_ADDRESS,
    tls: WithTls = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    duration: Annotated[
        float,
        typer.Option(
            help="Most seconds that a step is measured, in six windows; it ends earlier, from "
            "half of that, once three windows in a row agree.",
            callback=in_range(0.06, "seconds"),
        ),
    ] = 2.4,
    warmup: Annotated[
        float,
        typer.Option(
            help="Seconds of load before a step is measured.", callback=in_range(0, "seconds")
        ),
    ] = 0.4,
    stable_within: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            help="How far apart windows that agree may lie, in throughput and in p99.",
            callback=in_range(0, "per cent"),
        ),
    ] = 10.0,
    processes: Annotated[
        int, typer.Option(help="Processes that share the sending.", min=1, max=64)
    ] = 1,
    seed: Annotated[
        int, typer.Option(help="Of arrivals and synthetic inputs; equal seeds repeat them.", min=0)
    ] = 0,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write everything measured there.", show_default=False
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE",
            help="Draw latency against load, and the batches, to a .png, .svg or .pdf.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Load a running server step by step; print throughput, latencies and batches of each step.

    Batch rows, queue and compute times are the server's own statistics, and count whatever else
    it does for the model meanwhile.
    """
    from headrace_server.cli.bench import bench
    from headrace_server.cli.bench_options import Options
    from headrace_server.cli.connection import access_from

    access = access_from(tls=tls, ca=tls_ca, cert=tls_cert, key=tls_key, token_file=token_file)
    options = Options(
        model=model,
        version=version,
        address=address,
        concurrency=concurrency,
        rate=rate,
        arrivals=arrivals,
        transport=transport,
        input_file=input_file,
        shapes=shapes or [],
        rows=rows,
        timeout=timeout,
        warmup=warmup,
        duration=duration,
        stable_within=stable_within,
        processes=processes,
        seed=seed,
        json_file=json_file,
        plot_file=plot_file,
        access=access,
    )
    if not bench(options):
        raise typer.Exit(FAILED)
