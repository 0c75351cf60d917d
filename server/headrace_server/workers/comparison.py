"""Holds a model with `compile` or `precision` against itself without: in a process of its own.

The front's side, for `headrace check`; `comparison_main` does the work.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

import msgspec

from headrace_server.models.repository import ModelSource
from headrace_server.workers.nursery import ONE_THREAD_EACH
from headrace_server.workers.placement import Placement

MODULE = "headrace_server.workers.comparison_main"


class ComparisonError(Exception):
    """The process that should have compared ended without an answer; the text says how."""


class Task(msgspec.Struct, frozen=True):
    """What to compare. `config` is a serialized ModelConfig; the rest as in `ModelSource` and
    `Placement`."""

    model: str
    version: int
    file: str
    kind: str
    pickle: bool
    config: bytes
    device: str
    threads: int


class Speed(msgspec.Struct, frozen=True):
    """Median seconds of a batch of so many rows, without the options and with them."""

    rows: int
    plain_s: float
    faster_s: float

    @property
    def ratio(self) -> float:
        """How many times as fast the options make it."""
        return self.plain_s / self.faster_s


class Comparison(msgspec.Struct, frozen=True):
    """How answers and their speed change.

    Of outputs with floats: the largest difference, the same relative to the largest number of its
    output, and the least cosine between an output with and without. Of all others: the share of
    elements that changed. `inputs` says what was sent.
    """

    inputs: str
    max_difference: float
    max_relative_difference: float
    least_cosine: float
    changed_share: float
    speeds: tuple[Speed, ...]


async def compare(source: ModelSource, config: bytes, placement: Placement) -> Comparison:
    """Load the model twice and run both on the same batches.

    Raises:
        ComparisonError: they could not be compared.
    """
    environment: Mapping[str, str] = {**ONE_THREAD_EACH, **os.environ}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    task = Task(
        source.name,
        source.version,
        str(source.file),
        source.kind.value,
        source.pickle,
        config,
        placement.device,
        placement.threads,
    )
    try:
        answer, errors = await process.communicate(msgspec.json.encode(task))
    except BaseException:
        if process.returncode is None:
            process.kill()
        raise
    try:
        return msgspec.json.decode(answer, type=Comparison)
    except msgspec.MsgspecError:
        lines = errors.decode(errors="replace").strip().splitlines()
        raise ComparisonError(lines[-1] if lines else f"status {process.returncode}") from None
