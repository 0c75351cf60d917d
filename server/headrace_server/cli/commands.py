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

from headrace_server.cli import calling
from headrace_server.cli.errors import FAILED, require_server_extra
from headrace_server.cli.options import Json
from headrace_server.config import ENVIRONMENT_PREFIX, ServerConfig, flag_of, variable_of

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
    http_port: Annotated[
        int | None,
        _setting("http_port", "Port for HTTP, as 8000 in Triton; 0 takes a free one."),
    ] = None,
    metrics_port: Annotated[
        int | None, _setting("metrics_port", "Port for Prometheus; 0 takes a free one.")
    ] = None,
    tls_cert: Annotated[
        str | None,
        _setting("tls_cert", "PEM file: certificate chain for all ports; read again when renewed."),
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
    fronts: Annotated[
        int | None,
        _setting(
            "fronts",
            "Processes that accept gRPC connections; one for every eight cores by default, four "
            "at most.",
        ),
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
    model_control_mode: Annotated[
        str | None,
        _setting(
            "model_control_mode",
            "What is loaded after the start: none; poll: what changes in the repository; "
            "explicit: what clients load and unload.",
        ),
    ] = None,
    load_model: Annotated[
        str | None,
        _setting(
            "load_model",
            "In explicit mode, names of models, separated by commas, to load at the start; * is "
            "all. By default none.",
        ),
    ] = None,
    repository_poll: Annotated[
        float | None,
        _setting("repository_poll_s", "Seconds between two looks at the repository in poll mode."),
    ] = None,
    drain_delay: Annotated[
        float | None,
        _setting(
            "drain_delay_s", "Seconds to go on serving, no longer ready, before stopping begins."
        ),
    ] = None,
    allow_client_shm: Annotated[
        bool | None,
        _setting(
            "allow_client_shm",
            "Let clients name shared memory of this machine, any that the server's user may open, "
            "in place of tensors.",
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
        _setting(
            "cores",
            "CPU cores that all workers share. By default all but one, and one for each of several "
            "fronts.",
        ),
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
    from headrace_server.memory import keep_one_heap
    from headrace_server.workers.nursery import prepare

    keep_one_heap()  # before there is a second thread
    prepare()  # at once: it imports for longer than this process does
    from headrace_server.cli.serve import serve

    arguments = {
        "host": host,
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "tokens": tokens,
        "max_message_bytes": max_message_bytes,
        "max_connections": max_connections,
        "fronts": fronts,
        "compression": compression,
        "allow_pickle": allow_pickle,
        "model_control_mode": model_control_mode,
        "load_model": load_model,
        "repository_poll_s": repository_poll,
        "drain_delay_s": drain_delay,
        "allow_client_shm": allow_client_shm,
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


app.add_typer(calling.app)
