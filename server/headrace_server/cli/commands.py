"""What the command line looks like: commands, arguments, flags and their help.

What a command does is in a module of its own that is imported when it runs, so that `--help`
waits for nothing.
"""

from __future__ import annotations

import os
from importlib.metadata import version as release_of
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from headrace_server.cli.errors import FAILED, require_server_extra
from headrace_server.config import ENVIRONMENT_PREFIX, ServerConfig, flag_of, variable_of

DEFAULT_ADDRESS = "127.0.0.1:8001"

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Serve PyTorch models over gRPC with dynamic batching, and call them.",
)

_DEFAULTS = dict(zip(ServerConfig.__struct_fields__, ServerConfig.__struct_defaults__, strict=True))


def _setting(name: str, text: str) -> Any:
    """The flag of one field of `ServerConfig`. Its default is None, which means "not given":
    what counts then is up to `load_config`."""
    default = _DEFAULTS[name]
    shown = "" if default in (None, "") else f"default {default}; "
    return typer.Option(
        flag_of(name),
        help=f"{text} ({shown}{variable_of(name)})",
        show_default=False,
    )


Repository = Annotated[
    Path,
    typer.Argument(
        metavar="REPOSITORY", help="Directory of models: MODEL/VERSION/FILE.", show_default=False
    ),
]
ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of the model.", show_default=False)
]
Version = Annotated[
    str, typer.Option(help="Version of the model; by default the newest.", show_default=False)
]
Address = Annotated[str, typer.Option(help="The server's gRPC address, host:port.")]
WithTls = Annotated[
    bool, typer.Option("--tls", help="Secure the connection; public authorities are trusted.")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="PEM file: who signs the server's certificate.", show_default=False
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="PEM file: the client's own certificate.", show_default=False
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="PEM file: its private key.", show_default=False),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="File with the token to show; on a command line others could read it.",
        show_default=False,
    ),
]
Timeout = Annotated[float, typer.Option(help="Seconds that a call may take.", min=0.001)]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {release_of('headrace')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Serve PyTorch models over gRPC with dynamic batching, and call them."""
    # gRPC's own lines about a port in use, a certificate not trusted and the like; the error that
    # follows says it better. Before anything imports it.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


@app.command()
def serve(
    repository: Repository,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file with these settings, named as their environment variables "
            f"without {ENVIRONMENT_PREFIX}, in lower case.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str | None,
        _setting("host", "Address to listen on. Before you widen it, see --tls-cert and --tokens."),
    ] = None,
    grpc_port: Annotated[
        int | None, _setting("grpc_port", "Port for gRPC; 0 takes a free one.")
    ] = None,
    metrics_port: Annotated[
        int | None, _setting("metrics_port", "Port for Prometheus; 0 takes a free one.")
    ] = None,
    tls_cert: Annotated[
        str | None,
        _setting(
            "tls_cert", "PEM file: certificate chain for both ports; read again when renewed."
        ),
    ] = None,
    tls_key: Annotated[
        str | None, _setting("tls_key", "PEM file: the private key, without a password.")
    ] = None,
    tls_client_ca: Annotated[
        str | None,
        _setting("tls_client_ca", "PEM file: who signs the certificates clients must then show."),
    ] = None,
    tokens: Annotated[
        str | None,
        _setting("tokens", "TOML file: who may use which models, how much; see 'headrace token'."),
    ] = None,
    max_message_bytes: Annotated[
        int | None, _setting("max_message_bytes", "Bytes of one request.")
    ] = None,
    max_connections: Annotated[
        int | None, _setting("max_connections", "Connections for gRPC at the same time.")
    ] = None,
    compression: Annotated[
        str | None,
        _setting(
            "compression",
            "refuse or accept compressed requests, which are unpacked before their size is known.",
        ),
    ] = None,
    allow_pickle: Annotated[
        str | None,
        _setting(
            "allow_pickle",
            "Names of models, separated by commas, that may load pickled objects: that runs "
            "code of whoever wrote the file.",
        ),
    ] = None,
    drain_timeout: Annotated[
        float | None,
        _setting("drain_timeout_s", "Seconds to finish admitted requests in when stopping."),
    ] = None,
    load_timeout: Annotated[
        float | None,
        _setting("load_timeout_s", "Seconds that a worker may take to load and warm up its model."),
    ] = None,
    max_queue_requests: Annotated[
        int | None, _setting("max_queue_requests", "Requests that may wait, for each model.")
    ] = None,
    max_queue_bytes: Annotated[
        int | None,
        _setting("max_queue_bytes", "Bytes of inputs that may wait, for each model."),
    ] = None,
    objective_ms: Annotated[
        float | None,
        _setting(
            "objective_ms",
            "Milliseconds that requests may take which bring no deadline of their own. "
            "By default as long as it takes.",
        ),
    ] = None,
    cores: Annotated[
        int | None,
        _setting("cores", "CPU cores that all workers share. By default all but one."),
    ] = None,
    pin_cores: Annotated[
        bool | None,
        _setting("pin_cores", "Each CPU worker runs on cores of its own alone (Linux)."),
    ] = None,
    cache_dir: Annotated[
        str | None,
        _setting(
            "cache_dir",
            "Directory that keeps what was measured of models; 'none' keeps nothing. "
            "By default $XDG_CACHE_HOME/headrace or ~/.cache/headrace.",
        ),
    ] = None,
    log_format: Annotated[str | None, _setting("log_format", "text or json.")] = None,
    log_level: Annotated[
        str | None, _setting("log_level", "debug, info, warning or error.")
    ] = None,
) -> None:
    """Serve the models of a repository until SIGTERM or Ctrl-C, then finish what was admitted.

    The command line goes before the environment, which goes before the file.
    """
    require_server_extra("serve")
    from headrace_server.cli.serve import serve

    arguments = {
        "host": host,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "tokens": tokens,
        "max_message_bytes": max_message_bytes,
        "max_connections": max_connections,
        "compression": compression,
        "allow_pickle": allow_pickle,
        "drain_timeout_s": drain_timeout,
        "load_timeout_s": load_timeout,
        "max_queue_requests": max_queue_requests,
        "max_queue_bytes": max_queue_bytes,
        "objective_ms": objective_ms,
        "cores": cores,
        "pin_cores": pin_cores,
        "cache_dir": cache_dir,
        "log_format": log_format,
        "log_level": log_level,
    }
    serve(repository, arguments, config)


@app.command()
def check(repository: Repository, as_json: Json = False) -> None:
    """Load every model of a repository once, without serving it; exit with 1 if one is broken."""
    require_server_extra("check")
    from headrace_server.cli.check import check

    if not check(repository, as_json=as_json):
        raise typer.Exit(FAILED)


@app.command()
def token() -> None:
    """Print a new token for a client, and the line that lets the server know it."""
    from headrace_server.cli.token import token

    token()


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
            min=0.06,
        ),
    ] = 2.4,
    warmup: Annotated[
        float, typer.Option(help="Seconds of load before a step is measured.", min=0)
    ] = 0.4,
    stable_within: Annotated[
        float,
        typer.Option(
            metavar="PERCENT",
            help="How far apart windows that agree may lie, in throughput and in p99.",
            min=0,
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
