"""A model explained over a real channel, to both clients: what it costs, and its last minute."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import grpc
import numpy as np
import pytest

from headrace import AsyncClient, Client, InvalidResponse, NotFound, Unavailable, Unimplemented
from headrace.explanations import ModelExplanation
from headrace.messages import model_explanation
from headrace.protocol import explanation_pb2 as pb
from headrace.protocol import explanation_pb2_grpc as rpc

if TYPE_CHECKING:
    from conftest import Served

Explain = Callable[..., Awaitable[ModelExplanation]]


@pytest.fixture(params=["asyncio", "blocking"])
def explain(request: pytest.FixtureRequest, served: Served) -> Explain:
    """`explain` of either client, as a coroutine function."""

    async def explain(*names: str) -> ModelExplanation:
        if request.param == "asyncio":
            async with AsyncClient(served.address) as client:
                return await client.explain(*names)
        with Client(served.address) as blocking:
            return await asyncio.to_thread(blocking.explain, *names)

    return explain


async def infer(served: Served, model: str, *rows: int) -> None:
    """Send requests of so many rows, all at once."""
    async with AsyncClient(served.address) as client:
        await asyncio.gather(
            *(
                client.infer(model, {"a": np.zeros((n, 2), np.float32), "tags": [[b"t"]] * n})
                for n in rows
            )
        )


async def test_before_anything_is_known_there_is_a_plan_without_curves(explain: Explain) -> None:
    # Its inputs are text, so that nothing could be timed when it was loaded.
    told = await explain("sums")
    assert (told.name, told.version, told.max_batch_size) == ("sums", "3", 8)
    assert told.plan is not None
    assert told.plan.curves == ()
    assert (told.last_minute.batches, told.last_minute.queue_s) == (0, None)


async def test_what_was_served_is_explained(served: Served, explain: Explain) -> None:
    await infer(served, "sums", 1, 2, 1, 4)
    told = await explain("sums", "3")
    assert told.plan is not None
    (curve,) = told.plan.curves
    assert curve.rows == tuple(range(1, 9))
    assert curve.length == 1, "one tag per row"
    assert sorted(curve.durations_s) == list(curve.durations_s)
    assert curve.gains[0] == 1.0
    assert curve.enough_rows in curve.rows
    assert curve.enough_gain >= told.plan.worthwhile * max(curve.gains)
    minute = told.last_minute
    assert minute.requests == 4
    assert sum(n * batches for n, batches in minute.batch_rows.items()) == 8
    assert sum(minute.batch_rows.values()) == sum(minute.dispatches.values()) == minute.batches
    assert minute.compute_s is not None
    assert 0 < minute.compute_s.p5 <= minute.compute_s.p99
    assert len(minute.samples) == minute.batches
    assert minute.samples[0].expected_s is None, "nothing was known before the first batch"


async def test_refusals_are_told_by_reason(served: Served, explain: Explain) -> None:
    async with AsyncClient(served.address) as client:
        for value in (0.0, -2e6):
            a = np.full((1, 2), value, np.float32)
            await asyncio.gather(
                client.infer("sums", {"a": a, "tags": [[b"t"]]}), return_exceptions=True
            )
    assert (await explain("sums")).last_minute.refusals == {"model_failed": 1}


async def test_fixed_rules_have_no_plan_but_a_last_minute(served: Served, explain: Explain) -> None:
    await served.also_serve("fixed", static=True)
    await infer(served, "fixed", 1, 1)
    told = await explain("fixed")
    assert told.plan is None
    assert told.last_minute.requests == 2
    assert told.last_minute.prediction_ratio is None


async def test_errors_are_those_of_the_one_table(served: Served, explain: Explain) -> None:
    with pytest.raises(NotFound, match="'nobody' is not found") as unknown:
        await explain("nobody")
    assert unknown.value.reason == "unknown_model"
    with pytest.raises(NotFound, match="version 9 is not found"):
        await explain("sums", "9")
    with pytest.raises(Unavailable, match="'broken' has no available versions"):
        async with AsyncClient(served.address) as client:
            await client.explain("broken", timeout=0.1)


async def test_a_server_that_explains_nothing_says_so() -> None:
    server = grpc.aio.server()
    rpc.add_ExplanationServiceServicer_to_server(rpc.ExplanationServiceServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with AsyncClient(f"127.0.0.1:{port}") as client:
        with pytest.raises(Unimplemented):
            await client.explain("sums")
    await server.stop(None)


def test_a_curve_that_does_not_fit_its_rows_is_an_invalid_response() -> None:
    response = pb.ExplainModelResponse(plan=pb.LearnedPlan(rows=[1, 2]))
    response.plan.curves.add(durations_s=[0.1, 0.2], enough_rows=2)
    assert model_explanation(response).plan is not None
    response.plan.curves.add(durations_s=[0.1], enough_rows=1)
    with pytest.raises(InvalidResponse, match="expected a curve over 2 numbers of rows, got 1"):
        model_explanation(response)
