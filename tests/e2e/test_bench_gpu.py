"""`make bench-gpu` where there is no GPU: it says so, and a short run on the CPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from bench.gpu import Round, encoder, main, resnet50, targets

pytestmark = pytest.mark.e2e


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert capsys.readouterr().err == "bench-gpu needs a CUDA GPU, and torch sees none here\n"


def test_a_model_is_measured_offline_and_served(tmp_path: Path) -> None:
    file = tmp_path / "out.json"
    arguments = ["--models", "mlp", "--device", "cpu", "--rounds", "1", "--seconds", "0.6"]
    assert main([*arguments, "--json", str(file)]) == 0
    (found,) = json.loads(file.read_text())["rounds"]
    assert found["model"] == "mlp"
    assert found["rows"] in (1, 2, 4, 8, 16, 32, 64)
    assert min(found["offline_per_s"], found["served_per_s"], found["bare_ms"]) > 0


def test_networks_have_the_shapes_of_their_names() -> None:
    with torch.inference_mode():
        assert resnet50().eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
        assert encoder().eval()(torch.zeros(1, 64, dtype=torch.int64)).shape == (1, 64, 384)
    assert round(sum(p.numel() for p in resnet50().parameters()) / 1e6, 1) == 25.6


def test_a_target_is_the_median_over_the_rounds() -> None:
    rounds = [
        Round("m", 8, 100.0, served, bare_ms=1.0, served_ms=1.5) for served in (90.0, 96.0, 99.0)
    ]
    (target,) = targets(rounds)
    assert target.found.startswith("0.960 (0.900 to 0.990); one call takes 0.50 ms longer")
    assert target.met
