"""The whole of Headrace in one command: build two models, serve them, and check every answer.

    python -m examples.demo

starts the real server as a separate process, sends it the held-out digits and real sentences from
many concurrent callers, and compares what comes back with the same models run in this process.
Exits with 1 if any answer is wrong or the server does not stop cleanly.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from examples.build import build
from examples.digits.train import MAX_BATCH, test_set
from examples.sentences.corpus import sentences
from examples.sentences.encoder import Embedder
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess

CALLERS = 64
QUERIES = (
    "How do I delete a folder with everything in it?",
    "middle value of a list of numbers",
    "wait until another thread has finished",
)
NEAREST = 2
METRICS = (
    "headrace_requests_total",
    "headrace_dispatches_total",
    "headrace_batch_rows_sum",
    "headrace_batch_rows_count",
    "headrace_compute_duration_seconds_sum",
    "headrace_workers",
)
REQUEST_TIMEOUT_S = 30.0
# The last bits depend on which requests share a batch: another size, another order of the sums.
TOLERANCE = 1e-5

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Traffic:
    """One model's answers, in the order the rows were given, and what they took."""

    answers: Array
    latencies_s: Array
    duration_s: float


def digits_in_process(directory: Path, images: Array) -> Array:
    """Return the probabilities [images, 10] that the exported program gives here."""
    module = torch.export.load(directory / "model.pt2").module()
    with torch.inference_mode():
        batches = torch.split(torch.from_numpy(images), MAX_BATCH)
        return torch.cat([module(batch)["probabilities"] for batch in batches]).numpy()


def embeddings_in_process(directory: Path, texts: list[str], progress: Progress) -> Array:
    """Return the embeddings [texts, 384], each text run alone, so that no padding takes part."""
    embed = Embedder(directory, "cpu")
    with torch.inference_mode():
        return torch.cat(
            [embed([text]) for text in progress.track(texts, description="sentences, in process")]
        ).numpy()


async def send(
    client: AsyncClient, model: str, names: tuple[str, str], rows: Array, progress: Progress
) -> Traffic:
    """Send each row as a request of its own, `CALLERS` at a time; `names` of input, output."""
    input_name, output_name = names
    answers: list[Array] = [np.empty(0)] * len(rows)
    latencies_s = np.zeros(len(rows))
    task = progress.add_task(f"{model}, over the wire", total=len(rows))
    waiting = iter(range(len(rows)))

    async def call_in_turn() -> None:
        for row in waiting:
            sent = time.perf_counter()
            outputs = await client.infer(
                model, {input_name: rows[row : row + 1]}, timeout=REQUEST_TIMEOUT_S
            )
            latencies_s[row] = time.perf_counter() - sent
            answers[row] = outputs[output_name]
            progress.advance(task)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as callers:
        for _ in range(CALLERS):
            callers.create_task(call_in_turn())
    return Traffic(np.concatenate(answers), latencies_s, time.perf_counter() - started)


async def batch_sizes(client: AsyncClient, model: str) -> dict[int, int]:
    """Return how many batches of each size the server ran, from its statistics."""
    return {
        entry.batch_size: entry.compute_infer.count
        for statistics in await client.statistics(model)
        for entry in statistics.batch_stats
    }


def show_traffic(console: Console, traffic: dict[str, Traffic]) -> None:
    table = Table(title=f"{CALLERS} concurrent callers, one row per request")
    for heading in ("model", "requests", "requests/s", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if heading == "model" else "right")
    for model, run in traffic.items():
        p50, p99 = np.percentile(run.latencies_s, (50, 99)) * 1e3
        table.add_row(
            model,
            f"{len(run.answers):,}",
            f"{len(run.answers) / run.duration_s:,.0f}",
            f"{p50:.1f}",
            f"{p99:.1f}",
        )
    console.print(table)


def show_batches(console: Console, model: str, counts: dict[int, int]) -> None:
    """Print how many batches had 1, 2, 3 to 4, 5 to 8, ... rows."""
    doublings: dict[int, int] = {}
    for size, count in counts.items():
        doubling = (size - 1).bit_length()
        doublings[doubling] = doublings.get(doubling, 0) + count
    table = Table(title=f"{model}: batches the server formed", box=None)
    table.add_column("rows", justify="right")
    table.add_column("batches", justify="right")
    table.add_column()
    for doubling, count in sorted(doublings.items()):
        most = 1 << doubling
        rows = str(most) if most <= 2 else f"{most // 2 + 1} to {most}"
        table.add_row(rows, f"{count:,}", "█" * -(-40 * count // max(doublings.values())))
    console.print(table)


def show_nearest(console: Console, texts: list[str], embeddings: Array) -> None:
    """Print the sentences closest to each query, with their cosine; the queries come first."""
    table = Table(title="nearest sentences")
    table.add_column("query")
    table.add_column("cosine", justify="right")
    table.add_column("sentence")
    corpus = embeddings[len(QUERIES) :]
    for query, embedding in zip(QUERIES, embeddings, strict=False):
        cosines = corpus @ embedding  # all vectors have length 1
        for rank, row in enumerate(np.argsort(-cosines)[:NEAREST]):
            sentence = _short(texts[len(QUERIES) + row])
            table.add_row(query if rank == 0 else "", f"{cosines[row]:.2f}", sentence)
        table.add_section()
    console.print(table)


def show_metrics(console: Console, exposition: str) -> None:
    """Print the lines of `METRICS` that are not zero."""
    console.print("[bold]from /metrics[/bold]")
    for line in exposition.splitlines():
        if line.startswith(METRICS) and float(line.rsplit(maxsplit=1)[-1]) != 0:
            console.print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _short(text: str, characters: int = 70) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def check_digits(probabilities: Array, expected: Array, labels: Array, console: Console) -> bool:
    """Compare the answers of all rounds with the model's own; print both accuracies."""
    rounds = len(probabilities) // len(labels)
    expected = np.tile(expected, (rounds, 1))
    labels = np.tile(labels, rounds)
    served, own = probabilities.argmax(axis=1), expected.argmax(axis=1)
    different = int((served != own).sum())
    error = float(np.abs(probabilities - expected).max())
    console.print(
        f"digits: accuracy over the wire {(served == labels).mean():.2%}, "
        f"in process {(own == labels).mean():.2%}; "
        f"{different} of {len(own):,} predictions differ; largest difference {error:.1e}",
        soft_wrap=True,
    )
    return different == 0 and error <= TOLERANCE


def check_sentences(embeddings: Array, expected: Array, console: Console) -> bool:
    """Compare each embedding with the encoder's own."""
    errors = np.abs(embeddings - expected).max(axis=1)
    wrong = int((~(errors <= TOLERANCE)).sum())  # not `>`, which lets NaN pass
    console.print(
        f"sentences: {wrong} of {len(expected):,} embeddings differ; "
        f"largest difference {errors.max():.1e}",
        soft_wrap=True,
    )
    return wrong == 0


async def exercise(
    address: str, images: Array, texts: list[str], console: Console
) -> tuple[dict[str, Traffic], dict[str, dict[int, int]]]:
    """Send everything to the server at `address`; return the traffic and batches per model."""
    text_rows = np.array([[text.encode()] for text in texts], dtype=object)
    async with AsyncClient(address) as client:
        with _bars(console) as progress:
            traffic = {
                "digits": await send(
                    client, "digits", ("image", "probabilities"), images, progress
                ),
                "sentences": await send(
                    client, "sentences", ("text", "embedding"), text_rows, progress
                ),
            }
        return traffic, {model: await batch_sizes(client, model) for model in traffic}


def demonstrate(repository: Path, rounds: int, limit: int, console: Console) -> bool:
    """Run the whole demonstration, the digits in several rounds and `limit` sentences.

    Returns whether every answer and the stop were right.
    """
    console.rule("building the models")
    build(repository, console)

    images, labels = test_set()
    texts = [*QUERIES, *sentences(limit)]
    expected_digits = digits_in_process(repository / "digits" / "1", images)
    with _bars(console) as progress:
        expected_sentences = embeddings_in_process(repository / "sentences" / "1", texts, progress)

    console.rule("serving them")
    with ServerProcess(repository) as server:
        console.print(f"ready on {server.grpc_address}")
        try:
            rows = np.tile(images, (rounds, 1, 1))
            traffic, batches = asyncio.run(exercise(server.grpc_address, rows, texts, console))
        except Exception:
            sys.stderr.writelines(server.log[-20:])  # it knows why
            raise
        with urllib.request.urlopen(server.metrics_url, timeout=REQUEST_TIMEOUT_S) as response:
            exposition = response.read().decode()
        exit_code = server.stop()

    show_traffic(console, traffic)
    for model, counts in batches.items():
        show_batches(console, model, counts)
    show_metrics(console, exposition)
    show_nearest(console, texts, traffic["sentences"].answers)

    console.rule("checking every answer")
    right = [
        check_digits(traffic["digits"].answers, expected_digits, labels, console),
        check_sentences(traffic["sentences"].answers, expected_sentences, console),
        exit_code == 0,
    ]
    console.print(f"the server stopped with exit code {exit_code}")
    return all(right)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build, serve and check the example models.")
    parser.add_argument(
        "--repository", type=Path, default=Path("repository"), help="default: %(default)s"
    )
    parser.add_argument("--rounds", type=int, default=10, help="of the digits (%(default)s)")
    parser.add_argument("--sentences", type=int, default=600, help="default: %(default)s")
    options = parser.parse_args(arguments)
    console = Console()
    # For such small tensors threads do not pay, and where another process holds a core they spin
    # for each other: with two threads the sentences below took 100 s instead of some seconds.
    torch.set_num_threads(1)
    try:
        right = demonstrate(options.repository, options.rounds, options.sentences, console)
    except FileNotFoundError as error:  # the weights are not installed
        print(error, file=sys.stderr)
        return 1
    console.print("[green]all right[/green]" if right else "[red]something is wrong[/red]")
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
