"""Real servers for end-to-end tests, each started once for all the tests that use it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from examples.build import build
from rich.console import Console

from headrace_server.testing import ServerProcess
from written_models import write_model

MODELS = {
    # Answers every row with a function of that row alone, so that a mix-up shows.
    "affine": """
        import torch
        from headrace_server import Model, TensorSpec

        class Affine(Model):
            inputs = [TensorSpec("x", "INT64", [3])]
            outputs = [TensorSpec("y", "INT64", [3])]
            max_batch_size = 64

            def forward(self, x):
                return 2 * x + 1
    """,
    # Prepares text into codes of its own length; some texts make it lie.
    "letters": """
        import torch
        from headrace_server import Model, TensorSpec

        class Letters(Model):
            inputs = [TensorSpec("text", "BYTES", [1])]
            prepared = [
                TensorSpec("codes", "INT64", [-1], pad=99, bounds=[(0, 64)]),
                TensorSpec("mask", "BOOL", [-1], pad=0),
            ]
            outputs = [TensorSpec("upper", "INT64", [-1]), TensorSpec("total", "INT64", [1])]

            def prepare(self, text):
                word = text[0, 0]
                codes = torch.tensor([list(word)], dtype=torch.int64)
                mask = torch.ones(1, len(word), dtype=torch.bool)
                if word.startswith(b"raise"):
                    raise ValueError(word)
                if word == b"lie about the mask":
                    return codes, mask[:, 1:]
                if word == b"lie about the rows":
                    return codes.repeat(2, 1), mask.repeat(2, 1)
                if word == b"lie about the types":
                    return codes.float(), mask
                if word == b"lie about the shapes":
                    return codes[0], mask[0]
                if word == b"lie about the count":
                    return codes
                if word == b"lie about everything":
                    return "nothing of the kind"
                return codes, mask

            def forward(self, codes, mask):
                return {"upper": codes + 1, "total": (codes * mask).sum(1, keepdim=True)}
    """,
    # Breaks on command: raises on -1, takes its whole process along on -2.
    "fragile": """
        import os
        import time
        from headrace_server import Model, TensorSpec

        class Fragile(Model):
            inputs = [TensorSpec("x", "FP32", [1])]
            outputs = [TensorSpec("y", "FP32", [1])]

            def forward(self, x):
                time.sleep(0.01)
                if (x == -2).any():
                    os._exit(3)
                if (x == -1).any():
                    raise ValueError("poison")
                return 2 * x
    """,
    "slow": """
        import time
        from headrace_server import Model, TensorSpec

        class Slow(Model):
            inputs = [TensorSpec("x", "FP32", [1])]
            outputs = [TensorSpec("y", "FP32", [1])]

            def forward(self, x):
                time.sleep(0.05)
                return x
    """,
}


@pytest.fixture(scope="session")
def example_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example models, trained and exported."""
    repository = tmp_path_factory.mktemp("examples")
    build(repository, Console(stderr=True))
    return repository


@pytest.fixture(scope="session")
def example_server(example_repository: Path) -> Iterator[ServerProcess]:
    """The examples, served. One core, hence one torch thread, as in the tests that compare."""
    with ServerProcess(example_repository, "--cores", "1") as server:
        yield server


@pytest.fixture(scope="session")
def callable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Some of `MODELS`, served for tests that only call them."""
    repository = tmp_path_factory.mktemp("callable")
    for name in ("affine", "letters"):
        write_model(repository, name, MODELS[name])
    with ServerProcess(repository) as server:
        yield server


@pytest.fixture(scope="session")
def sharing_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Some of `MODELS`, served to clients that share memory."""
    repository = tmp_path_factory.mktemp("sharing")
    for name in ("affine", "letters", "fragile"):
        write_model(repository, name, MODELS[name])
    with ServerProcess(repository, "--allow-client-shm") as server:
        yield server


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Start a server of one's own over some of `MODELS`: `serve(name=config_text, ...)`."""
    started: list[ServerProcess] = []

    def start(*flags: str, **configs: str) -> ServerProcess:
        for name, config in configs.items():
            write_model(tmp_path, name, MODELS[name], config)
        started.append(ServerProcess(tmp_path, *flags).start())
        return started[-1]

    yield start
    for server in started:
        server.stop()
