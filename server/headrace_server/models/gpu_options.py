"""Reads what a configuration says of GPUs: memory for each worker, CUDA graphs, how to wait.

Front-safe: standard library and protobuf only.
"""

from __future__ import annotations

from dataclasses import dataclass

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.config_text import Locate, locate_nowhere
from headrace_server.models.errors import ConfigError

MEMORY_FRACTION = "gpu_memory_fraction"


@dataclass(frozen=True, slots=True)
class GpuOptions:
    """Without effect on the CPU.

    ``memory_fraction``: the share of its GPU's memory that a worker may take, 1 for no limit.
    ``graphs``: replay favoured batches as CUDA graphs. ``spin``: wait for the GPU with a core that
    does nothing else. Both are Triton's, `optimization.cuda`.
    """

    memory_fraction: float = 1.0
    graphs: bool = False
    spin: bool = False


def gpu_options(config: ModelConfig | None, locate: Locate = locate_nowhere) -> GpuOptions:
    """What a configuration asks for. Raises `ConfigError` for a fraction that is none."""
    if config is None:
        return GpuOptions()
    fraction = 1.0
    if MEMORY_FRACTION in config.parameters:
        written = config.parameters[MEMORY_FRACTION].string_value
        try:
            fraction = float(written)
        except ValueError:
            fraction = 0.0
        if not 0 < fraction <= 1:
            where = locate(f'parameters["{MEMORY_FRACTION}"]')
            raise ConfigError(f"{where} must be more than 0 and at most 1, got '{written}'")
    cuda = config.optimization.cuda
    return GpuOptions(fraction, cuda.graphs, cuda.busy_wait_events)
