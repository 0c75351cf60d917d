"""Linear layers that compute in bf16 or int8, and how they take the place of a network's own.

Everything between them (normalisation, attention, activations, sums) stays in FP32, which costs
little and keeps most of the accuracy. Weights are converted and packed once.

int8 quantises activations anew for every row, by the row's own range: no answer depends on who else
rides in the batch, or on padding. Weights have one scale for each output.

Workers only: imports torch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace_server.models.errors import ModelError
from headrace_server.models.load_options import slow_here

Call = Callable[..., Tensor]

GREATEST = 127
"""Of a signed byte; -128 is left out, so that the range is symmetric."""

ZERO_POINT = 128
"""What stands for 0 in an activation. Weights are signed bytes, activations are not, since that is
what VNNI multiplies: for two signed ones oneDNN 3.12 has no kernel without AMX, and falls back on
its reference (12 ms for one row of 784 by 512, where this takes 0.06 and FP32 0.03)."""

GREATEST_CLIPPED = 63
"""Of a weight where two products are added up in 16 bits, as by CPUs without VNNI and AMX (oneDNN's
guide to int8 warns of it): the largest of which two fit, times the largest activation, 255."""

LEAST_SCALE = 1e-12
"""For rows of zeros, which have no range."""

PACKED_ROWS = 16
"""The number of rows that oneDNN lays out weights for; others run as well."""

LEAST_OUTPUTS = 320
LEAST_INPUTS = 32
"""Of a layer in int8. For fewer, to quantise the activations costs more than the product saves: 10
outputs of 512 inputs take 60 to 110 µs where FP32 takes 4 to 30 (1 to 64 rows)."""

_FUSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Read the weights of their linear layers themselves, so these are left as they are."""

_LARGE = f", at least {LEAST_OUTPUTS} outputs and {LEAST_INPUTS} inputs"

log = logging.getLogger("headrace.models")


def is_worth_it(weight: Tensor, precision: str) -> bool:
    """Whether a linear layer with this weight is to be lowered."""
    if weight.dtype is not torch.float32:
        return False
    outputs, inputs = weight.shape
    return precision != "int8" or (outputs >= LEAST_OUTPUTS and inputs >= LEAST_INPUTS)


def lowered(weight: Tensor, bias: Tensor | None, precision: str) -> tuple[Call, tuple[Any, ...]]:
    """A linear layer in another precision: a function of the input and of these constants.

    Args:
        weight: FP32 [outputs, inputs], on the CPU.
        bias: FP32 [outputs], if any.
        precision: "bf16" or "int8".

    Raises:
        ModelError: torch was built without the kernels.
    """
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    try:
        if precision == "int8":
            return _int8_layer(weight, bias)
        return _bf16_layer(weight, bias)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        first_line = str(error).partition("\n")[0]
        raise ModelError(f"precision {precision} is not to be had here: {first_line}") from error


class LoweredLinear(nn.Module):
    """Takes the place of a `torch.nn.Linear`."""

    def __init__(self, layer: nn.Linear, precision: str) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self._call, self._constants = lowered(layer.weight, layer.bias, precision)

    def forward(self, x: Tensor) -> Tensor:
        """As `torch.nn.Linear` does."""
        return self._call(x, *self._constants)


def lower_module(module: nn.Module, precision: str) -> tuple[nn.Module, int]:
    """Replace the linear layers in a module that are worth it; returns it, or what takes its place,
    and how many were replaced. Subclasses of `torch.nn.Linear` stay, they may mean more, and so do
    layers with hooks, which make their weight (`weight_norm`) or change what they answer."""
    if type(module) is nn.Linear:
        hooked = module._forward_pre_hooks or module._forward_hooks
        if hooked or not is_worth_it(module.weight, precision):
            return module, 0
        return LoweredLinear(module, precision), 1
    count = 0
    if not isinstance(module, (*_FUSED, torch.jit.ScriptModule)):
        for name, child in list(module.named_children()):
            replaced, found = lower_module(child, precision)
            if replaced is not child:
                setattr(module, name, replaced)
            count += found
    return module, count


def require_cpu(precision: str, device: str, file: Path) -> None:
    """Raise ModelError where the model is not to run on the CPU; warn where that gains nothing."""
    if torch.device(device).type != "cpu":
        raise ModelError(f"{file}: precision {precision} is for CPU workers, not for {device}")
    warning = slow_here(precision)
    if warning:
        log.warning("precision %s: %s", precision, warning)


def require_layers(count: int, precision: str, file: Path) -> None:
    """Raise ModelError where nothing was there to be converted."""
    if not count:
        raise ModelError(
            f"{file}: precision {precision} is for FP32 linear layers with constant weights"
            f"{_LARGE if precision == 'int8' else ''}; found none"
        )


def _bf16_layer(weight: Tensor, bias: Tensor | None) -> tuple[Call, tuple[Any, ...]]:
    weight = weight.bfloat16()
    bias = None if bias is None else bias.bfloat16()
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return _bf16_plain, (weight, bias)
    # Laid out once for the CPU's matrix instructions; else every call would do it.
    return _bf16_packed, (torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS), bias)


def _bf16_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(x.to(torch.bfloat16), weight, bias).to(x.dtype)


def _bf16_packed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    answer: Tensor = torch.ops.mkldnn._linear_pointwise.default(
        x.to(torch.bfloat16), weight, bias, "none", [], ""
    )
    return answer.to(x.dtype)


def _int8_layer(
    weight: Tensor, bias: Tensor | None, greatest: int | None = None
) -> tuple[Call, tuple[Any, ...]]:
    greatest = greatest or _greatest_weight()
    scales = _scales(weight, greatest)
    bytes_ = torch.round(weight / scales).to(torch.int8)
    packed = torch.ops.onednn.qlinear_prepack(bytes_, None)
    zeros = torch.zeros(weight.shape[0], dtype=torch.int32)
    return _int8, (packed, scales[:, 0].contiguous(), zeros, bias)


@functools.cache
def _greatest_weight() -> int:
    """The largest weight of which this CPU adds up products as it should, found out by trying."""
    ones = torch.ones(LEAST_OUTPUTS, LEAST_INPUTS)
    call, constants = _int8_layer(ones, None, GREATEST)
    # Single rows may have another kernel than many.
    sums = [call(ones[:rows], *constants) for rows in (1, PACKED_ROWS)]
    exact = all(torch.allclose(s, s.new_tensor(float(LEAST_INPUTS)), rtol=1e-3) for s in sums)
    return GREATEST if exact else GREATEST_CLIPPED


def _int8(x: Tensor, weight: Tensor, scales: Tensor, zeros: Tensor, bias: Tensor | None) -> Tensor:
    rows = _scales(x, GREATEST)
    product: Tensor = torch.ops.onednn.qlinear_pointwise.default(
        *(torch.round(x / rows).add_(ZERO_POINT).to(torch.uint8), 1.0, ZERO_POINT),
        *(weight, scales, zeros, None),
        *(1.0, 0, torch.float32, "none", [], ""),
    )
    return product.mul_(rows) if bias is None else torch.addcmul(bias, product, rows)


def _scales(x: Tensor, greatest: int) -> Tensor:
    """What a step of a byte is worth in each row whose largest number becomes `greatest`; keeps the
    last dimension, as 1."""
    return x.abs().amax(-1, keepdim=True).clamp_min(LEAST_SCALE) / greatest
