"""A real server with two workers on one GPU: right answers under load, after failures too."""

from __future__ import annotations

import asyncio
import textwrap
from pathlib import Path

import numpy as np
import pytest

from headrace import AsyncClient, ServerError
from headrace_server.testing import ServerProcess

pytestmark = [pytest.mark.gpu, pytest.mark.e2e]

MODEL = """
    import torch
    from headrace_server import Model, TensorSpec

    class Affine(Model):
        inputs = [TensorSpec("x", "FP32", [256]), TensorSpec("keep", "BOOL", [1])]
        outputs = [TensorSpec("y", "FP32", [256]), TensorSpec("kept", "BOOL", [1])]
        max_batch_size = 16

        def load(self, context):
            self.answers = torch.zeros(16, 256, device=context.device)

        def forward(self, x, keep):
            if (x[:, 0] < 0).any():
                raise ValueError("negative")
            y = self.answers[: len(x)]  # memory that the next batch writes to again
            y.copy_(2 * x + 1)
            return {"y": y, "kept": keep}
"""

CONFIG = """
instance_group { kind: KIND_GPU count: 2 gpus: [0] }
parameters { key: "gpu_memory_fraction" value { string_value: "0.4" } }
"""


async def test_every_request_gets_its_own_answer(tmp_path: Path) -> None:
    directory = tmp_path / "affine" / "1"
    directory.mkdir(parents=True)
    (directory / "model.py").write_text(textwrap.dedent(MODEL))
    (directory.parent / "config.pbtxt").write_text(CONFIG)

    async def call(client: AsyncClient, number: int) -> None:
        x = np.full((1 + number % 3, 256), number, np.float32)
        keep = np.full((len(x), 1), number % 2 == 0)
        if number % 20 == 19:
            with pytest.raises(ServerError):
                await client.infer("affine", {"x": -x, "keep": keep})
            return
        answer = await client.infer("affine", {"x": x, "keep": keep})
        np.testing.assert_array_equal(answer["y"], 2 * x + 1)
        np.testing.assert_array_equal(answer["kept"], keep)

    with ServerProcess(tmp_path) as server:
        async with AsyncClient(server.grpc_address) as client:
            await asyncio.gather(*(call(client, number) for number in range(1, 500)))
