"""Who is let in, how soon the others are told, and who goes first, on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from headrace.aio import AsyncClient
from headrace.errors import InvalidRequest, ServerError, Unavailable
from headrace.retry import RetryPolicy
from headrace_server.testing import ServerProcess
from reading_metrics import metric
from written_models import write_model

pytestmark = [pytest.mark.e2e, pytest.mark.alone]

BATCH_S = 0.1
OBJECTIVE_MS = 60
AT_ONCE_S = 0.03
"""A refusal takes a few milliseconds; the rest is for a busy machine. Far less than a batch."""

SLOW = f"""
    import time
    from headrace_server import Model, TensorSpec

    class Slow(Model):
        inputs = [TensorSpec("x", "FP32", [-1], pad=0, bounds=[(1, 64)])]
        outputs = [TensorSpec("y", "FP32", [-1])]

        def forward(self, x):
            time.sleep({BATCH_S})
            return x
"""
PREPARED = f"""
    import time
    import torch
    from headrace_server import Model, TensorSpec

    class Prepared(Model):
        inputs = [TensorSpec("text", "BYTES", [1])]
        prepared = [TensorSpec("codes", "INT64", [-1], pad=0)]
        outputs = [TensorSpec("total", "INT64", [1])]

        def prepare(self, text):
            time.sleep({BATCH_S})
            return torch.tensor([list(text[0, 0])], dtype=torch.int64)

        def forward(self, codes):
            return codes.sum(1, keepdim=True)
"""
QUICK = """
    import time
    from headrace_server import Model, TensorSpec

    class Quick(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def forward(self, x):
            time.sleep(0.01)
            return x
"""
UNHURRIED = 'parameters { key: "objective_ms" value { string_value: "60000" } }'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Some models behind one objective for all of them."""
    repository: Path = tmp_path_factory.mktemp("admission")
    write_model(repository, "hurried", SLOW)
    write_model(
        repository,
        "unhurried",
        SLOW,
        UNHURRIED + 'parameters { key: "max_batch_bytes" value { string_value: "1024" } }',
    )
    write_model(
        repository,
        "fixed",
        SLOW,
        "dynamic_batching { default_queue_policy { allow_timeout_override: true } }",
    )
    write_model(repository, "prepared", PREPARED, UNHURRIED)
    write_model(repository, "single", QUICK, "max_batch_size: 1 " + UNHURRIED)
    save_exported(repository / "exported" / "1" / "model.pt2")
    with ServerProcess(repository, "--objective-ms", str(OBJECTIVE_MS)) as running:
        yield running


class Totals(torch.nn.Module):
    """Rows of 3 to 32 numbers, one total each."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum(dim=1, keepdim=True)


def save_exported(file: Path) -> None:
    file.parent.mkdir(parents=True)
    dynamic = ({0: torch.export.Dim("rows", max=8), 1: torch.export.Dim("length", min=3, max=32)},)
    program = torch.export.export(Totals(), (torch.zeros(2, 4),), dynamic_shapes=dynamic)
    torch.export.save(program, file)


class Caller:
    """Calls one server without ever trying again, and takes the time."""

    def __init__(self, client: AsyncClient) -> None:
        self.client = client

    async def outcome(
        self, model: str, *, rows: int = 1, length: int = 1, **options: object
    ) -> tuple[ServerError | None, float]:
        """The error, if any, and the seconds that the call took."""
        began_s = time.monotonic()
        x = np.ones((rows, length), np.float32)
        inputs = {"text": [["abc"]]} if model == "prepared" else {"x": x}
        try:
            await self.client.infer(model, inputs, **options)  # type: ignore[arg-type]
        except ServerError as error:
            return error, time.monotonic() - began_s
        return None, time.monotonic() - began_s

    async def outcomes(self, model: str, count: int) -> list[tuple[ServerError | None, float]]:
        return await asyncio.gather(*(self.outcome(model) for _ in range(count)))


@pytest.fixture
async def caller(server: ServerProcess) -> AsyncIterator[Caller]:
    retry = RetryPolicy(max_attempts=1)
    async with AsyncClient(server.grpc_address, timeout=60.0, retry=retry) as client:
        yield Caller(client)


def refusals(server: ServerProcess, model: str, reason: str) -> float:
    labels = f'model="{model}",version="1",reason="{reason}"'
    return metric(server, f"headrace_refusals_total{{{labels}}}")


class TestObjective:
    async def test_what_cannot_meet_it_is_refused_at_once_with_a_time_to_try_again(
        self, server: ServerProcess, caller: Caller
    ) -> None:
        before = refusals(server, "hurried", "predicted_late")
        outcomes = await caller.outcomes("hurried", 12)
        answered = [error for error, _ in outcomes if error is None]
        refused = [(error, seconds) for error, seconds in outcomes if error is not None]
        assert answered, "somebody is tried, whatever is known"
        assert refused
        for error, _ in refused:
            assert isinstance(error, Unavailable)
            assert error.reason == "predicted_late"
            assert error.retry_after_s == pytest.approx(0.1)
        assert min(seconds for _, seconds in refused) < AT_ONCE_S
        assert refusals(server, "hurried", "predicted_late") == before + len(refused)

    async def test_a_model_has_its_own(self, caller: Caller) -> None:
        assert not [e for e, _ in await caller.outcomes("unhurried", 12) if e]

    async def test_fixed_rules_know_none(self, caller: Caller) -> None:
        assert not [e for e, _ in await caller.outcomes("fixed", 12) if e]


class TestDeadline:
    @pytest.mark.parametrize(
        "options",
        [{"parameters": {"timeout": 20_000}}, {"timeout": 0.05}],
        ids=["timeout parameter", "gRPC deadline"],
    )
    async def test_one_that_cannot_be_kept_is_refused_at_once(
        self, caller: Caller, options: dict[str, object]
    ) -> None:
        seconds = []
        for _ in range(3):
            # What is known of durations is trusted for a second after a batch has confirmed it.
            assert (await caller.outcome("unhurried"))[0] is None
            error, taken_s = await caller.outcome("unhurried", **options)
            assert isinstance(error, Unavailable)
            assert error.reason == "predicted_late"
            assert error.retry_after_s == pytest.approx(0.1)
            seconds.append(taken_s)
        assert min(seconds) < AT_ONCE_S

    async def test_one_that_is_past_is_refused_at_once(self, caller: Caller) -> None:
        running = asyncio.create_task(caller.outcome("fixed"))
        await asyncio.sleep(BATCH_S / 4)
        error, seconds = await caller.outcome("fixed", parameters={"timeout": 1})
        assert isinstance(error, Unavailable)
        assert error.reason == "queue_timeout"
        assert error.retry_after_s is None
        assert not running.done()
        assert seconds < BATCH_S
        assert (await running)[0] is None

    async def test_time_spent_preparing_counts(self, server: ServerProcess, caller: Caller) -> None:
        before = refusals(server, "prepared", "queue_timeout")
        assert (await caller.outcome("prepared"))[0] is None
        # Longer than a second ago, so that the stage that prepares lets it in.
        await asyncio.sleep(1.2)
        error, _ = await caller.outcome("prepared", parameters={"timeout": 10_000})
        assert isinstance(error, Unavailable)
        assert error.reason == "queue_timeout"
        assert refusals(server, "prepared", "queue_timeout") == before + 1


class TestSize:
    @pytest.mark.parametrize(
        ("model", "length", "bounds"), [("unhurried", 65, "1..64"), ("exported", 33, "3..32")]
    )
    async def test_a_length_beyond_its_bound_is_refused_with_what_was_expected(
        self, caller: Caller, model: str, length: int, bounds: str
    ) -> None:
        neighbour = asyncio.create_task(caller.outcome(model, length=length - 1))
        error, seconds = await caller.outcome(model, length=length)
        assert isinstance(error, InvalidRequest)
        assert f"for model '{model}'. Expected [-1, {bounds}], got [1, {length}]" in str(error)
        assert seconds < BATCH_S
        assert (await neighbour)[0] is None

    async def test_more_bytes_than_a_batch_may_have_are_refused_with_the_bound(
        self, server: ServerProcess, caller: Caller
    ) -> None:
        assert (await caller.outcome("unhurried", rows=4, length=64))[0] is None
        error, seconds = await caller.outcome("unhurried", rows=5, length=64)
        assert isinstance(error, InvalidRequest)
        assert error.reason == "request_too_large"
        assert "Expected at most 1024 bytes, got 1280" in str(error)
        assert seconds < BATCH_S
        labels = 'model="unhurried",version="",reason="request_too_large"'
        assert metric(server, f"headrace_refusals_total{{{labels}}}") == 1


class TestPriority:
    async def test_a_low_one_is_slower_and_never_starved(self, caller: Caller) -> None:
        enough = asyncio.Event()
        usual: list[float] = []

        async def call_on() -> None:
            while not enough.is_set():
                error, seconds = await caller.outcome("single")
                assert error is None
                usual.append(seconds)

        others = [asyncio.create_task(call_on()) for _ in range(8)]
        await asyncio.sleep(0.3)
        # One level of priority is worth a second.
        error, low_s = await caller.outcome("single", priority=6)
        enough.set()
        await asyncio.gather(*others)
        assert error is None
        assert low_s > 2 * max(usual), "a low priority is overtaken"
        assert 0.8 < low_s < 5.0, "but not for ever"
