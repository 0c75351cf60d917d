"""Two thousand callers at once: each one gets its own rows back, exactly once."""

from __future__ import annotations

import asyncio
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from asking import submit
from engine_stage import Stage, call_of, serve
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Answer

CALLERS = 2_000

# A seed rather than `st.randoms`: tens of thousands of choices are more than Hypothesis shrinks.
CHANCES = st.integers(0, 2**64 - 1).map(Random)


def rows_of(caller: int, rows: int) -> list[bytes]:
    """What only this caller sends, and each row of it only once."""
    return [(caller * 8 + row).to_bytes(2, "little") for row in range(rows)]


async def submit_all(stage: Stage, chance: Random) -> list[tuple[bytes, asyncio.Future[Answer]]]:
    submitted = []
    for caller in range(CALLERS):
        rows = rows_of(caller, chance.randint(1, 8))
        submitted.append((b"".join(rows), submit(stage.deployment, call_of(*rows))[1]))
        if chance.random() < 0.2:
            stage.clock.advance(chance.choice([0.0, 0.001]))
    stage.clock.advance(1.0)
    return submitted


def running(stage: Stage) -> list[int]:
    return [batches[0] for batches in stage.workers.held.values() if batches]


@settings(max_examples=4)
@given(CHANCES, st.booleans())
def test_every_caller_gets_its_own_rows(chance: Random, static: bool) -> None:
    async def story() -> None:
        stage = await serve(
            workers=chance.randint(1, 5), max_requests=CALLERS, max_bytes=1 << 30, static=static
        )
        submitted = await submit_all(stage, chance)
        while batches := running(stage):
            stage.workers.complete(chance.choice(batches))
            stage.clock.advance(chance.choice([0.0, 0.001]))
        for sent, future in submitted:
            (answer,) = (await future).outputs
            assert answer.data == sent
            assert answer.shape == (len(sent) // 2, 2)
        assert stage.deployment.queued_requests == 0

    asyncio.run(story())


@settings(max_examples=2)
@given(CHANCES)
def test_losses_and_failures_mix_nobody_up(chance: Random) -> None:
    async def story() -> None:
        stage = await serve(workers=4, max_requests=CALLERS, max_bytes=1 << 30)
        submitted = await submit_all(stage, chance)
        while batches := running(stage):
            trouble = chance.random()
            if trouble < 0.05:
                worker_id = chance.choice(list(stage.workers.held))
                stage.workers.lose(worker_id)
                stage.workers.restore(worker_id)
            elif trouble < 0.1:
                stage.workers.fail(chance.choice(batches))
            else:
                stage.workers.complete(chance.choice(batches))
            stage.clock.advance(0.001)
        reasons = set()
        for sent, future in submitted:
            assert future.done(), "somebody still waits"
            try:
                assert (await future).outputs[0].data == sent
            except ServingError as error:
                reasons.add(error.reason)
        assert Reason.MODEL_FAILED in reasons
        assert reasons <= {Reason.MODEL_FAILED, Reason.WORKER_LOST}

    asyncio.run(story())
