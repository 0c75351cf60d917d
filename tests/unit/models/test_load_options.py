"""The parameters `compile` and `precision`: what may be written, and what is said otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.config_checks import check_config
from headrace_server.models.errors import ConfigError
from headrace_server.models.load_options import (
    LoadOptions,
    load_options,
    slow_here,
    without_options,
)


def config_with(**parameters: str) -> ModelConfig:
    config = ModelConfig()
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    return config


def test_nothing_is_asked_for_by_default() -> None:
    assert not load_options(None)
    assert not load_options(ModelConfig())
    assert not load_options(config_with(compile="false", layers="3"))


@pytest.mark.parametrize(
    ("written", "mode"),
    [
        ("true", "default"),
        ("default", "default"),
        ("max-autotune", "max-autotune-no-cudagraphs"),
    ],
)
def test_compile_takes_a_mode(written: str, mode: str) -> None:
    assert load_options(config_with(compile=written)) == LoadOptions(compile=mode)


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precision_is_named(precision: str) -> None:
    options = load_options(config_with(precision=precision))
    assert options == LoadOptions(precision=precision)
    assert str(options) == f"precision {precision}"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"compile": "yes"}, r"""parameters\["compile"\] must be one of 'true', .* got 'yes'"""),
        ({"compile": ""}, "got ''"),
        ({"compile": "reduce-overhead"}, "must be one of"),
        ({"precision": "fp8"}, r"""parameters\["precision"\] must be one of 'bf16', 'int8', got"""),
        ({"precision": "int8", "compile": "true"}, "drop one"),
    ],
)
def test_anything_else_is_refused_by_name(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_config(config_with(**parameters), "m")


def test_a_model_without_its_options_keeps_everything_else() -> None:
    config = config_with(precision="int8", layers="3")
    config.max_batch_size = 4
    plain = without_options(config)
    assert dict(plain.parameters) == dict(config_with(layers="3").parameters)
    assert plain.max_batch_size == 4
    assert "precision" in config.parameters


@pytest.mark.parametrize(
    ("cpuinfo", "slow"),
    [
        ("flags\t: fpu avx2 avx512_bf16\n", False),
        ("Features\t: fp asimd bf16\n", False),
        ("flags\t: fpu avx2\nflags\t: fpu avx2\n", True),
    ],
)
def test_a_cpu_without_the_instructions_is_named_slow(
    tmp_path: Path, cpuinfo: str, slow: bool
) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(cpuinfo)
    assert bool(slow_here("bf16", file)) is slow
    assert ("none of avx512_bf16, amx_bf16, bf16" in slow_here("bf16", file)) is slow
    assert slow_here("int8", tmp_path / "missing") == ""
