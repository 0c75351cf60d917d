"""Captured batches of a real program on a real GPU answer as the program does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headrace_server.models.loading import load_model
from headrace_server.models.repository import read_model
from headrace_server.models.warmup import warm_up
from headrace_server.workers.cuda_graphs import cuda_capture, with_graphs

pytestmark = pytest.mark.gpu


def test_a_capture_that_fails_leaves_the_device_as_it_was() -> None:
    before = torch.cuda.current_stream()
    x = torch.ones(4, device="cuda:0")

    def call() -> tuple[torch.Tensor, ...]:
        return (x * x.sum().item(),)  # waits for the device, which no capture allows

    with pytest.raises(RuntimeError):
        cuda_capture()(call)
    assert torch.cuda.current_stream() == before
    assert x.sum().item() == 4.0
    torch.cuda.empty_cache()


def test_graphs_answer_as_the_program_does(tmp_path: Path) -> None:
    directory = tmp_path / "network" / "1"
    directory.mkdir(parents=True)
    network = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.ReLU(), torch.nn.Linear(32, 4))
    program = torch.export.export(
        network.eval(),
        (torch.zeros(2, 16),),
        dynamic_shapes=({0: torch.export.Dim("batch", max=8)},),
    )
    torch.export.save(program, directory / "model.pt2")
    source = read_model(tmp_path / "network").versions[0]
    model = load_model(source, None, "cuda:0")
    warm_up(model, None, source)
    samples = tuple((rows, 0, 1.0) for rows in (1, 2, 4, 8))  # slower than any graph
    graphed, costs = with_graphs(model, samples, cuda_capture())
    assert all(seconds < 1.0 for _, _, seconds in costs)
    name = model.spec.inputs[0].name
    for rows in (1, 3, 8, 2):
        x = {name: torch.rand(rows, 16, device="cuda:0")}
        for output, value in model.run(x).items():
            torch.testing.assert_close(graphed.run(x)[output], value, rtol=1e-3, atol=1e-3)
