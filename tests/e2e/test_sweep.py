"""What is measured of a model when it is loaded: known before the first request, and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess
from reading_metrics import until_metric
from written_models import write_model

pytestmark = pytest.mark.e2e

# Leaves the rows of every batch that it runs, in a place of its own.
COUNTED = """
    import time
    from pathlib import Path
    from headrace_server import Model, TensorSpec

    class Counted(Model):
        inputs = [TensorSpec("x", "FP32", [1])]
        outputs = [TensorSpec("y", "FP32", [1])]

        def load(self, context):
            self.log = Path(context.parameters["log"])

        def forward(self, x):
            time.sleep(0.005)
            with self.log.open("a") as log:
                log.write(f"{len(x)}\\n")
            return x
"""
RECHECK = 3
"""Times that the shape which checks a kept sweep runs."""


def test_the_sweep_of_an_earlier_load_is_used_again(tmp_path: Path) -> None:
    log = tmp_path / "runs"
    config = f'parameters {{ key: "log" value {{ string_value: "{log}" }} }}'
    write_model(tmp_path / "repository", "counted", COUNTED, config)

    def load() -> int:
        log.write_text("")
        flags = ("--cache-dir", str(tmp_path / "cache"))
        with ServerProcess(tmp_path / "repository", *flags):
            return len(log.read_text().split())

    warm_up = 2
    assert load() > warm_up + 8 * RECHECK
    # Not every load, since a machine that is busy with other things may be slower for a while.
    assert any(load() == warm_up + RECHECK for _ in range(3))
    assert len(list((tmp_path / "cache" / "sweeps").iterdir())) == 1


async def test_a_model_that_prepares_text_is_planned_from_the_first_request_on(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(letters="")
    async with AsyncClient(server.grpc_address) as client:
        await client.infer("letters", {"text": [["abc"]]}, timeout=30.0)
    sample = 'headrace_batch_duration_prediction_ratio_count{model="letters",version="1"}'
    until_metric(server, sample, 1)
