"""What `compile` and `precision` are worth here: two models plain, compiled, in bf16 and int8.

    python -m bench.options [--models mlp sentences] [--pairs 40] [--json docs/bench-options.json]

A 784-512-512-10 network (an exported program) and the encoder of all-MiniLM-L6-v2 (a model in
Python) are loaded as a worker loads them, with one torch thread, once for every option. Batches of
each shape go through all of them in turn, so that a noisy machine is noisy for all; the ratio is
the median over the turns. Differences are the largest one, relative to the largest number.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from examples.sentences.build import build as build_sentences

from bench.cost import FLOATS
from bench.cost import build_repository as build_mlp
from headrace_server.models.load_options import slow_here
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.repository import read_model
from headrace_server.models.warmup import warm_up
from headrace_server.workers.sweep_cache import device_name

OPTIONS = {
    "plain": ("", ""),
    "compile": ("compile", "true"),
    "bf16": ("precision", "bf16"),
    "int8": ("precision", "int8"),
}
SHAPES = {
    "mlp": ((1, 0), (4, 0), (16, 0), (64, 0)),
    "sentences": ((1, 8), (1, 32), (8, 16), (8, 32), (32, 16), (32, 64)),
}
"""Rows and length."""
VOCABULARY = 30_522


@dataclass(frozen=True, slots=True)
class Row:
    """One option for batches of one shape, beside the model as it is."""

    model: str
    option: str
    rows: int
    length: int
    median_ms: float
    times_as_fast: float
    relative_difference: float


def load(directory: Path, model: str, option: str) -> tuple[LoadedModel, float]:
    """The model with this option, warm, and the seconds that it took."""
    key, value = OPTIONS[option]
    if model == "mlp":
        build_mlp(directory)
    else:
        build_sentences(directory / model / "1")
    if key:
        text = f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        (directory / model / "config.pbtxt").write_text(text)
    entry = read_model(directory / model)
    assert entry.error is None, entry.error
    started = time.perf_counter()
    loaded = load_model(entry.versions[0], entry.config, "cpu")
    warm_up(loaded, entry.config, entry.versions[0])
    return loaded, time.perf_counter() - started


def inputs_of(model: str, rows: int, length: int) -> dict[str, torch.Tensor]:
    if model == "mlp":
        return {"input": torch.randn(rows, FLOATS)}
    return {
        "ids": torch.randint(1_000, VOCABULARY, (rows, length)),
        "mask": torch.ones(rows, length, dtype=torch.bool),
    }


def measure(
    model: str, loaded: Mapping[str, LoadedModel], rows: int, length: int, pairs: int
) -> list[Row]:
    inputs = inputs_of(model, rows, length)
    answers = {
        option: torch.as_tensor(next(iter(one.run(inputs).values())))
        for option, one in loaded.items()
    }
    times: dict[str, list[float]] = {option: [] for option in loaded}
    for _ in range(pairs):
        for option, one in loaded.items():
            started = time.perf_counter()
            one.run(inputs)
            times[option].append(time.perf_counter() - started)
    plain = answers["plain"]
    return [
        Row(
            model,
            option,
            rows,
            length,
            statistics.median(own) * 1e3,
            statistics.median(a / b for a, b in zip(times["plain"], own, strict=True)),
            float((answers[option] - plain).abs().max() / plain.abs().max()),
        )
        for option, own in times.items()
    ]


def compare(model: str, options: Sequence[str], pairs: int) -> tuple[list[Row], dict[str, float]]:
    """Every shape of a model, and the seconds that each option took to load."""
    with tempfile.TemporaryDirectory() as directory:
        found = {option: load(Path(directory) / option, model, option) for option in options}
        loaded = {option: one for option, (one, _) in found.items()}
        rows = [row for shape in SHAPES[model] for row in measure(model, loaded, *shape, pairs)]
        for one in loaded.values():
            one.close()
    return rows, {option: seconds for option, (_, seconds) in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=[*SHAPES], default=[*SHAPES])
    parser.add_argument("--options", nargs="+", choices=[*OPTIONS], default=[*OPTIONS])
    parser.add_argument("--pairs", type=int, default=40, help="turns for every shape")
    parser.add_argument("--json", type=Path, help="write every row to this file")
    given = parser.parse_args(arguments)
    options = list(dict.fromkeys(["plain", *given.options]))
    if "compile" in options and not (shutil.which("g++") or shutil.which("clang++")):
        print("no C++ compiler here: compile is left out")
        options.remove("compile")
    for precision in {"bf16", "int8"}.intersection(options):
        if warning := slow_here(precision):
            print(f"{precision}: {warning}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rows: list[Row] = []
    load_s: dict[str, dict[str, float]] = {}
    for model in given.models:
        found, load_s[model] = compare(model, options, given.pairs)
        rows += found
        seconds = ", ".join(f"{option} {value:.1f} s" for option, value in load_s[model].items())
        print(f"{model}, loaded and warm after: {seconds}")
        for row in found:
            length = f" of length {row.length}" if row.length else ""
            print(
                f"{row.rows:>3} rows{length}, {row.option:<8} {row.median_ms:8.3f} ms  "
                f"{row.times_as_fast:5.2f}x as fast  differs by {row.relative_difference:.1e}",
                flush=True,
            )
    if given.json:
        machine = {"cpu": device_name("cpu"), "system": platform.platform()}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        report = {**machine, **versions, "load_s": load_s, "rows": [asdict(row) for row in rows]}
        given.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
