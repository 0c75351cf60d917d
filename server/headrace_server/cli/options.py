"""Arguments and flags that commands share: of models, of output, and of the way to a server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from headrace_server.cli.errors import USAGE, CommandError

DEFAULT_ADDRESS = "127.0.0.1:8001"

MOST = 1_000_000_000
"""Of seconds 32 years, which every clock can still count."""


def in_range(least: float, unit: str) -> Callable[[typer.CallbackParam, float], float]:
    """A callback for a flag that takes numbers from `least` to `MOST`.

    It raises `CommandError` for others: click's own range lets NaN pass.
    """

    def checked(param: typer.CallbackParam, value: float) -> float:
        if not least <= value <= MOST:
            raise CommandError(
                f"expected {param.opts[0]} from {least:g} to {MOST:,} {unit}, got {value:g}", USAGE
            )
        return value

    return checked


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
Timeout = Annotated[
    float, typer.Option(help="Seconds that a call may take.", callback=in_range(0.001, "seconds"))
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
