"""Options and settings of the whole suite."""

from __future__ import annotations

import os
import signal
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

# A shell ignores SIGINT for what it starts in the background, and so would all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

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
