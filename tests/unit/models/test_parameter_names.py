"""Parameters that are nearly what the server reads: asked about, never refused."""

from __future__ import annotations

import pytest

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.parameter_names import READ, READ_OF_INPUTS, doubtful_parameters


def config_with(*names: str) -> ModelConfig:
    config = ModelConfig()
    for name in names:
        config.parameters[name].string_value = "1"
    return config


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("objectve_ms", "objective_ms"),
        ("objective", "objective_ms"),
        ("compiled", "compile"),
        ("max_batch_byte", "max_batch_bytes"),
        ("paad:ids", "pad:ids"),
        ("masks:attention", "mask:attention"),
    ],
)
def test_a_slip_of_the_pen_is_asked_about(written: str, meant: str) -> None:
    (note,) = doubtful_parameters(config_with(written))
    assert note == f"the server does not read parameter '{written}'; is it '{meant}'?"


def test_what_the_server_reads_and_what_is_the_models_own_is_not() -> None:
    named = [*READ, *(f"{name}:x" for name in READ_OF_INPUTS)]
    own = ["threshold", "labels", "beam_size", "INFERENCE_MODE", "path:to", "pad", ":"]
    assert [*doubtful_parameters(config_with(*named, *own))] == []
    assert [*doubtful_parameters(None)] == []
