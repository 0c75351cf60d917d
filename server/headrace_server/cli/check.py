"""`headrace check`: loads every model of a repository once and reports what it found."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from rich.console import Console
from rich.text import Text

from headrace_server.app import deployment_of
from headrace_server.cli.errors import USAGE, CommandError
from headrace_server.cli.output import (
    counted,
    print_json,
    result_console,
    state_text,
    table,
    tensors_text,
)
from headrace_server.config import ConfigurationError, ServerConfig, load_config
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import DeploymentState
from headrace_server.engine.observer import Observer
from headrace_server.models.errors import RepositoryError
from headrace_server.models.load_options import LoadOptions, load_options, slow_here
from headrace_server.models.repository import ModelEntry, ModelSource, scan
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.telemetry import logs
from headrace_server.workers.comparison import Comparison, ComparisonError, compare
from headrace_server.workers.placement import Placement, available_cores


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of one version of a model. `error` is empty for one that loads; `version` is
    empty where the model as a whole is broken. `comparison` is what its `options` change, if it has
    any; `note` what else there is to say of them."""

    model: str
    version: str
    error: str = ""
    spec: ModelSpec | None = None
    devices: tuple[str, ...] = ()
    load_s: float = 0.0
    options: LoadOptions | None = None
    comparison: Comparison | None = None
    note: str = ""

    @property
    def state(self) -> str:
        """READY or BROKEN."""
        return "BROKEN" if self.error else "READY"


def check(repository: Path, *, as_json: bool) -> bool:
    """Check and report on standard output; returns whether every model can be served.

    Raises:
        CommandError: there is no repository, or no model in it, or the environment holds
            settings that make no sense.
    """
    logs.configure("text", "warning")
    try:
        config = load_config({}, os.environ)
        entries = scan(repository)
    except ConfigurationError as error:
        raise CommandError(str(error), USAGE) from None
    except RepositoryError as error:
        raise CommandError(str(error)) from None
    if not entries:
        raise CommandError(f"expected directories of models in {repository}, found none")
    findings = asyncio.run(_load_all(entries, config))
    if as_json:
        print_json([_json(finding) for finding in findings])
    else:
        _print(findings, [note for entry in entries for note in entry.notes])
    return not any(finding.error for finding in findings)


async def _load_all(entries: Sequence[ModelEntry], config: ServerConfig) -> list[Finding]:
    findings: list[Finding] = []
    # One after the other: the seconds that the report gives are then the model's own.
    with Console(stderr=True).status("") as status:
        for entry in entries:
            findings += _broken(entry)
            for source in entry.versions:
                status.update(f"loading {source.name} {source.version}")
                findings.append(await _load(entry, source, config))
    return findings


def _broken(entry: ModelEntry) -> Iterator[Finding]:
    for version, error in entry.broken_versions.items():
        yield Finding(entry.name, str(version), error)
    if entry.error and not entry.broken_versions:
        yield Finding(entry.name, "", entry.error)


async def _load(entry: ModelEntry, source: ModelSource, config: ServerConfig) -> Finding:
    cores = config.cores or max(1, available_cores() - 1)
    deployment = deployment_of(
        entry, source, config, cores=cores, clock=LoopClock(), observer=Observer()
    )
    began_s = time.monotonic()
    try:
        await deployment.load()
        load_s = time.monotonic() - began_s
        if deployment.state is DeploymentState.READY:
            found = Finding(
                source.name,
                str(source.version),
                spec=deployment.spec,
                devices=tuple(deployment.devices),
                load_s=load_s,
                options=load_options(entry.config),
            )
            await deployment.stop()  # the cores are the comparison's then
            return await _compared(found, entry, source, config, cores)
        return Finding(source.name, str(source.version), deployment.reason, load_s=load_s)
    finally:
        await deployment.stop()


async def _compared(
    found: Finding, entry: ModelEntry, source: ModelSource, config: ServerConfig, cores: int
) -> Finding:
    """The finding with what its options change, measured."""
    if not found.options or entry.config is None:
        return found
    device, on_cpu = found.devices[0], found.devices.count("cpu")
    threads = max(1, cores // on_cpu) if device == "cpu" else 1
    note = slow_here(found.options.precision) if found.options.precision else ""
    source = replace(source, pickle=source.name in config.pickle_models)
    placement = Placement(device, threads)
    try:
        comparison = await compare(source, entry.config.SerializeToString(), placement)
    except ComparisonError as error:
        return replace(found, note=f"cannot be compared with the model as it is: {error}")
    return replace(found, comparison=comparison, note=note)


def _print(findings: Sequence[Finding], notes: Sequence[str]) -> None:
    console = result_console()
    models = table(
        *("model", "version", "state", "platform", "max batch", "inputs", "outputs", "devices"),
        "load s",
        numbers=("max batch", "load s"),
    )
    for finding in findings:
        spec = finding.spec
        models.add_row(
            Text(finding.model),
            finding.version,
            state_text(finding.state),
            *(
                ("", "", "", "")
                if spec is None
                else (
                    spec.platform,
                    str(spec.max_batch_size or "none"),
                    tensors_text(spec.inputs),
                    tensors_text(spec.outputs),
                )
            ),
            counted(finding.devices),
            f"{finding.load_s:.1f}" if spec is not None else "",
        )
    console.print(models)
    for finding in findings:
        if finding.error:
            name = f"{finding.model} {finding.version}".strip()
            console.print(Text.assemble((name, "bold red"), ": ", finding.error), soft_wrap=True)
    for finding in findings:
        name = f"{finding.model} {finding.version}, {finding.options}"
        if finding.comparison is not None:
            text = described(finding.comparison)
            console.print(Text.assemble((name, "bold"), ": ", text), soft_wrap=True)
        if finding.note:
            console.print(Text.assemble((name, "yellow"), ": ", finding.note), soft_wrap=True)
    for note in notes:
        console.print(Text.assemble(("note", "yellow"), ": ", note), soft_wrap=True)


def described(comparison: Comparison) -> str:
    """What options change, in a sentence."""
    parts = [
        f"answers differ by at most {comparison.max_difference:.2g} "
        f"({comparison.max_relative_difference:.2%} of the largest number, "
        f"cosine {comparison.least_cosine:.6f})"
    ]
    if comparison.changed_share:
        parts.append(f"{comparison.changed_share:.2%} of the other elements changed")
    parts += [
        f"{counted_rows(speed.rows)}: {speed.ratio:.2f}x as fast "
        f"({speed.plain_s * 1e3:.3g} ms, now {speed.faster_s * 1e3:.3g} ms)"
        for speed in comparison.speeds
    ]
    return f"{'; '.join(parts)}. Tried on {comparison.inputs}."


def counted_rows(rows: int) -> str:
    """So many rows, in words."""
    return "1 row" if rows == 1 else f"{rows} rows"


def _json(finding: Finding) -> dict[str, object]:
    found: dict[str, object] = {
        "model": finding.model,
        "version": finding.version,
        "state": finding.state,
    }
    if finding.spec is None:
        return {**found, "error": finding.error}
    return {
        **found,
        "platform": finding.spec.platform,
        "max_batch_size": finding.spec.max_batch_size,
        "inputs": [_json_tensor(tensor) for tensor in finding.spec.inputs],
        "outputs": [_json_tensor(tensor) for tensor in finding.spec.outputs],
        "devices": list(finding.devices),
        "load_s": round(finding.load_s, 3),
        **({} if finding.comparison is None else {"comparison": _json_comparison(finding)}),
    }


def _json_comparison(finding: Finding) -> dict[str, object]:
    assert finding.comparison is not None
    builtins: dict[str, object] = msgspec.to_builtins(finding.comparison)
    return {"options": str(finding.options), **builtins, "note": finding.note}


def _json_tensor(tensor: TensorSpec) -> dict[str, object]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "optional": tensor.optional,
    }
