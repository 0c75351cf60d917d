"""How results are printed: tables for people, JSON for programs, both on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headrace_server.models.spec import TensorSpec

UNBOUNDED_COLUMNS = 10_000

STATE_STYLES = {
    "READY": "green",
    "LOADING": "yellow",
    "UNLOADING": "yellow",
    "UNAVAILABLE": "red",
    "BROKEN": "red",
}


def result_console() -> Console:
    """Standard output. Nothing is cut or wrapped where there is no terminal to fit."""
    return Console(width=None if sys.stdout.isatty() else UNBOUNDED_COLUMNS, highlight=False)


def print_json(value: object) -> None:
    """Print `value` on standard output as one line of JSON."""
    print(json.dumps(value))


def table(*columns: str, numbers: Iterable[str] = ()) -> Table:
    """An empty table with these columns; those in `numbers` are aligned to the right."""
    built = Table(box=SIMPLE_HEAD, pad_edge=False)
    right = frozenset(numbers)
    for column in columns:
        built.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return built


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, style=STATE_STYLES.get(state, ""))


def counted(devices: Iterable[str]) -> str:
    """Devices of workers, equal ones together: `2 x cpu`."""
    listed = list(devices)
    return ", ".join(
        device if listed.count(device) == 1 else f"{listed.count(device)} x {device}"
        for device in dict.fromkeys(listed)
    )


def tensors_text(tensors: Iterable[TensorSpec]) -> Text:
    """One line for each tensor: name, datatype and shape, without the batch dimension."""
    return Text("\n".join(f"{t}{' (optional)' if t.optional else ''}" for t in tensors))
