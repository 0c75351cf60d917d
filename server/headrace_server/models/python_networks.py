"""Applies `compile` and `precision` to a model in Python: to the networks that its `load` made.

Workers only: imports torch.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from headrace_server.models.compilation import compile_modules, require_compiler
from headrace_server.models.errors import ModelError
from headrace_server.models.load_options import LoadOptions
from headrace_server.models.model import Model
from headrace_server.models.precision import lower_module, require_cpu, require_layers


def speed_up(model: Model, options: LoadOptions, device: str, file: Path) -> None:
    """Compile or convert every `torch.nn.Module` among the model's attributes, in place.

    Raises:
        ModelError: there is none, or what is asked for is not to be had.
    """
    if not options:
        return
    networks = {name: value for name, value in vars(model).items() if isinstance(value, nn.Module)}
    if isinstance(model, nn.Module):  # keeps its own in a place of their own
        networks |= dict(model.named_children())
    if not networks:
        raise ModelError(
            f"{file}: {options} is for the torch.nn.Modules that load() keeps as attributes, and "
            f"{type(model).__name__} keeps none"
        )
    if options.compile:
        require_compiler([torch.device(device).type], file)
        compile_modules(networks.values(), options.compile)
        return
    require_cpu(options.precision, device, file)
    found = 0
    for name, network in networks.items():
        replaced, count = lower_module(network, options.precision)
        setattr(model, name, replaced)
        found += count
    require_layers(found, options.precision, file)
