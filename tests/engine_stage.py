"""Sets the stage for engine tests: a deployment on a fake clock and puppet workers, and calls."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Any

from asking import submit
from doubles import FakeClock, PuppetExecutor, RecordingObserver
from headrace_server.engine.calls import Answer, Call
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.last_minute import LastMinute
from headrace_server.engine.observer import Observer, ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.engine.statistics import Statistics
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers.executor import RequestTensors


def spec_of(
    *,
    max_batch_size: int = 8,
    x: TensorSpec | None = None,
    y: TensorSpec | None = None,
) -> ModelSpec:
    """A model with one input and one output, of two bytes per row unless told otherwise."""
    return ModelSpec(
        "model",
        1,
        "test",
        max_batch_size,
        (x or TensorSpec("x", "UINT8", [2]),),
        (y or TensorSpec("y", "UINT8", [2]),),
    )


def call_of(*rows: bytes, **options: Any) -> Call:
    """A call with these rows."""
    tensors = RequestTensors(len(rows), [b"".join(rows)], [(len(rows), len(rows[0]))], {})
    return Call(tensors, sum(map(len, rows)), **options)


@dataclass
class Stage:
    """What a test has in hand."""

    deployment: Deployment
    workers: PuppetExecutor
    clock: FakeClock
    observer: RecordingObserver
    statistics: Statistics
    last_minute: LastMinute

    def submit(self, *rows: bytes, **options: Any) -> asyncio.Future[Answer]:
        """Submit one call and let the scheduler decide, if it can by now."""
        _, future = submit(self.deployment, call_of(*rows, **options))
        self.clock.advance()
        return future


async def serve(
    *,
    spec: ModelSpec | None = None,
    workers: int = 1,
    max_requests: int = 100,
    max_bytes: int = 1 << 20,
    load_error: str = "",
    preparing: PuppetExecutor | None = None,
    **settings: Any,
) -> Stage:
    """Load a deployment; the settings are those of `BatchingSettings`, static by default.
    `preparing` runs the stage before it, of models that have one."""
    spec = spec or spec_of()
    batching = BatchingSettings(spec.max_batch_size, **{"static": True, **settings})
    executor = PuppetExecutor(spec, workers=workers, load_error=load_error)
    clock, observer = FakeClock(), RecordingObserver()
    statistics, last_minute = Statistics(lambda: 1_000.0), LastMinute()

    def preparation(rules: SchedulingRules, observer: Observer) -> Deployment:
        assert preparing is not None
        alone = replace(rules, settings=BatchingSettings(0))
        return Deployment(spec.name, spec.version, preparing, lambda _: alone, clock, observer)

    deployment = Deployment(
        spec.name,
        spec.version,
        executor,
        lambda _: SchedulingRules(batching, max_requests, max_bytes),
        clock,
        ObserverGroup(observer, statistics, last_minute),
        preparation,
    )
    await deployment.load()
    return Stage(deployment, executor, clock, observer, statistics, last_minute)
