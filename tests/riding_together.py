"""Sends requests to a loaded model so that they ride in one batch, along the real data path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from asking import submit
from headrace.tensors import decode_tensor, encode_tensor
from headrace_server.engine.calls import Call
from headrace_server.engine.clock import LoopClock
from headrace_server.engine.deployment import Deployment
from headrace_server.engine.observer import ObserverGroup
from headrace_server.engine.scheduling import SchedulingRules
from headrace_server.models.batching import BatchingSettings
from headrace_server.models.loading import LoadedModel
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import RequestTensors
from headrace_server.workers.inline_executor import InlineExecutor

Arrays = Mapping[str, np.ndarray]


def call_of(spec: ModelSpec, arrays: Arrays) -> Call:
    """A call with these inputs; those that are not named are left out."""
    given = [arrays.get(tensor.name) for tensor in spec.batched_inputs]
    data = [
        None if array is None else encode_tensor(array, tensor.datatype)
        for tensor, array in zip(spec.batched_inputs, given, strict=True)
    ]
    rows = next(array.shape[0] for array in given if array is not None)
    shapes = [None if array is None else array.shape for array in given]
    return Call(RequestTensors(rows, data, shapes, {}), sum(len(part or b"") for part in data))


async def ride_together(model: LoadedModel, requests: Sequence[Arrays]) -> list[dict[str, Any]]:
    """Answers of requests that ride in one batch, in their order; fails if they do not."""
    spec = model.spec
    calls = [call_of(spec, arrays) for arrays in requests]
    rows = sum(call.tensors.rows for call in calls)
    # Waits for exactly these rows.
    settings = BatchingSettings(
        rows, static=True, preferred_batch_sizes=(rows,), max_queue_delay_s=60.0
    )
    deployment = Deployment(
        spec.name,
        spec.version,
        InlineExecutor(lambda: model),
        lambda _: SchedulingRules(settings, 1_000, 1 << 30),
        LoopClock(),
        ObserverGroup(),
    )
    await deployment.load()
    futures = [submit(deployment, call)[1] for call in calls]
    answers = [await future for future in futures]
    deployment.kill()
    assert [answer.batch_rows for answer in answers] == [rows] * len(answers)
    return [
        {
            tensor.name: decode_tensor(tensor.datatype, part.shape, part.data)
            for tensor, part in zip(spec.outputs, answer.outputs, strict=True)
        }
        for answer in answers
    ]
