"""What a configuration may say of GPUs."""

from __future__ import annotations

import pytest

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.config_checks import check_config
from headrace_server.models.errors import ConfigError
from headrace_server.models.gpu_options import GpuOptions, gpu_options


def config_with_fraction(written: str) -> ModelConfig:
    config = ModelConfig()
    config.parameters["gpu_memory_fraction"].string_value = written
    return config


def test_nothing_is_asked_for_by_default() -> None:
    assert gpu_options(None) == gpu_options(ModelConfig()) == GpuOptions(1.0, False, False)


def test_triton_s_own_switches_are_read() -> None:
    config = ModelConfig()
    config.optimization.cuda.graphs = config.optimization.cuda.busy_wait_events = True
    assert gpu_options(config) == GpuOptions(graphs=True, spin=True)


@pytest.mark.parametrize(("written", "fraction"), [("0.45", 0.45), ("1", 1.0)])
def test_a_share_of_the_memory_is_a_number(written: str, fraction: float) -> None:
    assert gpu_options(config_with_fraction(written)).memory_fraction == fraction


@pytest.mark.parametrize("written", ["", "0", "1.5", "-1", "half", "nan", "50%"])
def test_what_is_no_share_is_refused_before_the_model_is_loaded(written: str) -> None:
    with pytest.raises(ConfigError, match="must be more than 0 and at most 1, got '"):
        check_config(config_with_fraction(written), "m")
