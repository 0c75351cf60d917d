"""Models that do what nobody expects of one: each is told what it did, and costs nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess
from written_models import write_model

pytestmark = pytest.mark.e2e

ONE = {"x": np.ones((1, 1), np.float32)}

HEADER = """
    import sys
    from headrace_server import Model, TensorSpec

    class Unruly(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def forward(self, x):
            return x
"""

EXITS = """
        def load(self, context):
            sys.exit("weights are missing")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    repository = tmp_path_factory.mktemp("unruly")
    for name, methods in {"exits": EXITS}.items():
        write_model(repository, name, HEADER + methods)
    explicit = ("--model-control-mode", "explicit", "--load-model", "*")
    with ServerProcess(repository, *explicit, "--cache-dir", "none") as started:
        yield started


@pytest.fixture
async def client(server: ServerProcess) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(server.grpc_address) as connected:
        yield connected


def logged(server: ServerProcess, text: str) -> bool:
    return any(text in line for line in server.log)


async def test_one_that_exits_while_it_loads_is_asked_once(
    server: ServerProcess, client: AsyncClient
) -> None:
    reasons = {model.name: model.reason for model in await client.index()}
    assert reasons["exits"] == "SystemExit: weights are missing"
    assert logged(server, "the model could not be loaded:")
    assert not logged(server, "model 'exits' killed")
