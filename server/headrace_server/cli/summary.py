"""What a terminal shows once a server runs: where it listens, what it serves, how to try it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from headrace_server.app import Addresses
from headrace_server.cli.options import DEFAULT_ADDRESS
from headrace_server.cli.output import counted, state_text, table, tensors_text
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.engine import Engine
from headrace_server.models.spec import ModelSpec

SAMPLE_TEXT = "some text"


def print_summary(console: Console, addresses: Addresses, engine: Engine, release: str) -> None:
    """Print the panel, and a command that can be copied as it stands."""
    listening = Table.grid(padding=(0, 2))
    listening.add_row(Text("gRPC", style="bold"), addresses.grpc)
    if addresses.http_url:
        listening.add_row(Text("HTTP", style="bold"), addresses.http_url)
    listening.add_row(Text("metrics", style="bold"), addresses.metrics_url)
    deployments = {(d.name, str(d.version)): d for d in engine.deployments()}
    models = table("model", "version", "state", "devices", "inputs", "outputs")
    for row in engine.index():
        deployment = deployments.get((row.model, row.version))
        models.add_row(
            Text(row.model),
            row.version,
            state_text(row.state),
            counted(deployment.devices) if deployment is not None and deployment.loaded else "",
            *_signature(deployment),
        )
    console.print(
        Panel(
            Group(listening, models if models.row_count else "no models"),
            title=f"headrace {release}",
            title_align="left",
            border_style="cyan",
            expand=False,
        )
    )
    ready = [d for d in deployments.values() if d.ready]
    if ready:
        line = sample_command(ready[0].spec, addresses.grpc)
        console.print(Text.assemble("Try it:  ", (line, "bold")), soft_wrap=True)
    console.print("Stop with Ctrl-C.", style="dim")


def sample_command(spec: ModelSpec, address: str) -> str:
    """A command line that the model answers, on `address` (host:port)."""
    only = spec.inputs[0] if len(spec.inputs) == 1 else None
    text = only is not None and only.datatype == "BYTES" and all(n == 1 for n in only.shape)
    for wildcard in ("0.0.0.0:", "[::]:"):
        if address.startswith(wildcard):
            address = "127.0.0.1:" + address.removeprefix(wildcard)
    words = ["headrace", "infer", spec.name, SAMPLE_TEXT if text else "--zeros"]
    if address != DEFAULT_ADDRESS:
        words += ["--address", address]
    return shlex.join(words)


def _signature(deployment: Deployment | None) -> Sequence[str | Text]:
    if deployment is None or not deployment.loaded:
        return ("", "")
    return (tensors_text(deployment.spec.inputs), tensors_text(deployment.spec.outputs))
