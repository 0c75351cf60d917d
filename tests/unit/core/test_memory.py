"""The memory budget: smaller batches after one found no memory, larger ones again later."""

from __future__ import annotations

from headrace_server.core.memory import LONGEST_RETRY_S, RETRY_S, MemoryBudget
from headrace_server.core.request import Batch, DispatchReason, Request


def batch_of(*nbytes: int) -> Batch:
    """One row per request, with so many bytes."""
    requests = [Request(i, None, 1, size, 0.0) for i, size in enumerate(nbytes)]
    return Batch(0, 0, requests, len(requests), DispatchReason.FULL, 0.0)


def test_a_batch_that_finds_no_memory_halves_the_budget() -> None:
    budget = MemoryBudget(1_000)
    budget.out_of_memory(batch_of(100, 100, 100, 100), 0.0)
    assert budget.max_bytes == 200
    budget.out_of_memory(batch_of(100, 100), 0.1)
    assert budget.max_bytes == 100


def test_padding_counts() -> None:
    budget = MemoryBudget(1_000)
    budget.out_of_memory(batch_of(10, 100), 0.0)
    assert budget.max_bytes == 100


def test_what_was_configured_is_tried_again_in_steps() -> None:
    budget = MemoryBudget(1_000)
    budget.out_of_memory(batch_of(*[100] * 6), 0.0)
    budget.held(RETRY_S - 1)
    assert budget.max_bytes == 300
    budget.held(RETRY_S)
    assert budget.max_bytes == 600
    budget.held(RETRY_S)
    assert budget.max_bytes == 600
    budget.held(2 * RETRY_S)
    assert budget.max_bytes == 1_000


def test_each_try_that_fails_doubles_the_time_to_the_next() -> None:
    budget = MemoryBudget(1_000)
    tries = []
    now = 0.0
    budget.out_of_memory(batch_of(500, 500), now)
    while len(tries) < 9:
        now += 1.0
        budget.held(now)
        if budget.max_bytes > 500:
            tries.append(now)
            budget.out_of_memory(batch_of(500, 500), now)
    waits = [later - sooner for sooner, later in zip([0.0, *tries], tries, strict=False)]
    assert waits[:4] == [RETRY_S, 2 * RETRY_S, 4 * RETRY_S, 8 * RETRY_S]
    assert waits[-1] == LONGEST_RETRY_S


def test_a_request_that_finds_no_memory_alone_explains_the_batches_before() -> None:
    budget = MemoryBudget(1_000)
    budget.out_of_memory(batch_of(*[100] * 8), 0.0)
    budget.out_of_memory(batch_of(*[100] * 4), 0.1)
    budget.out_of_memory(batch_of(100), 0.2)
    assert budget.max_bytes == 1_000


def test_a_request_alone_says_nothing_of_batches_long_ago() -> None:
    budget = MemoryBudget(1_000)
    budget.out_of_memory(batch_of(500, 500), 0.0)
    budget.out_of_memory(batch_of(100), RETRY_S)
    assert budget.max_bytes == 500


def test_the_budget_is_never_nothing() -> None:
    budget = MemoryBudget(1)
    budget.out_of_memory(batch_of(1, 1), 0.0)
    assert budget.max_bytes == 1
