"""Options and settings of the whole suite."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# The suite is the same on every run; `HYPOTHESIS_PROFILE=explore` goes looking for trouble.
settings.register_profile("suite", derandomize=True, database=None, deadline=None, max_examples=40)
settings.register_profile(
    "explore",
    deadline=None,
    max_examples=2_000,
    stateful_step_count=80,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# Nor does it depend on, or leave, what servers keep of models from one run to the next.
os.environ["HEADRACE_CACHE_DIR"] = "none"


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """For what sets the number of torch's threads, which is one for all tests of a process."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite", action="store_true", help="write what scenarios do now into their files"
    )
