"""Models of every kind take requests of all lengths at once, over the wire."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.aio import AsyncClient
from headrace.errors import InvalidRequest
from headrace_server.testing import ServerProcess
from ragged_networks import Attention, Segments, export_attention, export_segments, write_script
from written_models import write_model

pytestmark = pytest.mark.e2e

MADE_MASK = """
max_batch_size: 16
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
input { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "tokens" data_type: TYPE_FP32 dims: [ -1, 8 ] }
output { name: "pooled" data_type: TYPE_FP32 dims: [ 8 ] }
parameters { key: "mask:attention_mask" value { string_value: "ids" } }
"""
CONCATENATED = """
max_batch_size: 8
dynamic_batching { }
input { name: "values" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "ends" data_type: TYPE_INT32
              source_input: "values" }
output { name: "sums" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "doubled" data_type: TYPE_FP32 dims: [ -1 ] }
batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "doubled" source_input: "values" }
"""
BEST = """
    import time
    import torch
    from headrace_server import Model, TensorSpec

    class Best(Model):
        inputs = [TensorSpec("ids", "INT64", [-1], pad=0)]
        outputs = [TensorSpec("best", "INT64", [-1]), TensorSpec("tripled", "INT64", [-1])]
        max_batch_size = 64

        def forward(self, ids):
            time.sleep(0.05)  # the next ones ride together
            return torch.arange(8).expand(len(ids), 8), ids * 3
"""
"""Of its two outputs only one follows the length, which may be 8."""


async def test_models_take_all_lengths_at_once(tmp_path: Path) -> None:
    export_attention(tmp_path / "derived")
    write_script(tmp_path / "masked", Attention(), MADE_MASK)
    export_segments(tmp_path / "exported", CONCATENATED)
    write_model(tmp_path, "best", BEST)
    write_script(tmp_path / "scripted", Segments(), CONCATENATED)
    draw = np.random.default_rng(1)
    texts = [draw.integers(0, 50, (rows, n)) for rows in (1, 2) for n in range(1, 65)]
    eights = [draw.integers(0, 50, (1, n)) for n in (8, 3, 5, 1, 8, 2) * 8]
    series = [draw.integers(0, 9, (1, n)).astype(np.float32) for n in range(1, 80)]

    async def ask(client: AsyncClient, model: str, inputs: list[dict[str, Any]]) -> list[Any]:
        return await asyncio.gather(*(client.infer(model, i, timeout=60.0) for i in inputs))

    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address) as client:
            with_mask = [{"ids": ids, "attention_mask": np.ones_like(ids)} for ids in texts]
            answers = {
                "derived": await ask(client, "derived", with_mask),
                "masked": await ask(client, "masked", [{"ids": ids} for ids in texts]),
                "exported": await ask(client, "exported", [{"values": v} for v in series]),
                "scripted": await ask(client, "scripted", [{"values": v} for v in series]),
                "best": await ask(client, "best", [{"ids": ids} for ids in eights]),
            }
            batches = {
                model: (await client.statistics(model))[0].execution_count for model in answers
            }
            metadata = await client.model_metadata("masked")
    network = Attention().eval()
    for model in ("derived", "masked"):
        assert batches[model] < len(texts)
        for ids, answer in zip(texts, answers[model], strict=True):
            with torch.inference_mode():
                own = network(torch.from_numpy(ids), torch.ones(ids.shape))
            for name, value in own.items():
                np.testing.assert_allclose(answer[name], value, rtol=1e-5, atol=1e-5)
    for model in ("exported", "scripted"):
        assert batches[model] < len(series)
        for values, answer in zip(series, answers[model], strict=True):
            np.testing.assert_array_equal(answer["sums"], [[values.sum()]])
            np.testing.assert_array_equal(answer["doubled"], 2 * values)
    assert batches["best"] < len(eights)
    for ids, answer in zip(eights, answers["best"], strict=True):
        np.testing.assert_array_equal(answer["best"], [range(8)])
        np.testing.assert_array_equal(answer["tripled"], 3 * ids)
    assert [tensor.name for tensor in metadata.inputs] == ["ids"]


async def test_inputs_that_the_program_has_of_one_length_are_held_to_it(tmp_path: Path) -> None:
    never = 'parameters { key: "pad:ids" value { string_value: "none" } }'
    export_attention(tmp_path / "apart", config=never)
    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address) as client:
            ids = np.zeros((2, 5), dtype=np.int64)
            expected = "dimension 1 of input 'attention_mask' .* Expected 5, got 4"
            with pytest.raises(InvalidRequest, match=expected):
                await client.infer(
                    "apart", {"ids": ids, "attention_mask": np.ones_like(ids[:, 1:])}
                )
            answer = await client.infer("apart", {"ids": ids, "attention_mask": np.ones_like(ids)})
            (statistics,) = await client.statistics("apart")
    assert answer["tokens"].shape == (2, 5, 8)
    assert statistics.execution_count == 1, "what was refused did not run"
