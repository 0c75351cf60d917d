"""Decides how requests of different lengths to an exported program are padded, if they are.

What the configuration declares is held against the program's dimensions. Where it declares nothing,
padding is derived, but only for a program that shows in a trial that it answers the same with it.
Workers only: imports torch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from headrace_server.models.errors import ConfigError
from headrace_server.models.exported_signature import NamedTensor, ProgramTensors
from headrace_server.models.ragged import RaggedRules, with_ragged_inputs
from headrace_server.models.spec import DYNAMIC, Making, ModelSpec

TRIALS = 3
PADDING_FACTOR = 4
"""The padded length of a trial over the own one: the more padding, the less it can hide."""

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4}
"""Largest difference that padding may make, relative to the largest number: kernels sum other
lengths in another order. `HALF_TOLERANCE` for what has fewer bits."""
HALF_TOLERANCE = 1e-2

Call = Callable[[Sequence[Any]], Sequence[torch.Tensor]]

log = logging.getLogger("headrace.models")


def padded(
    spec: ModelSpec,
    tensors: ProgramTensors,
    call: Call,
    rules: RaggedRules,
    device: str,
    *,
    derive: bool,
) -> ModelSpec:
    """Return the spec with every filling that is declared, or else with those that are derived.

    Padding with 0 is derived when one input is called `mask` or `..._mask`, clients send it, its
    only dynamic dimension behind the batch is that of every input that has one, all dynamic
    dimensions of the outputs are that one too, and the program has answered requests padded under
    that mask like the same requests alone, but not without the mask. Masks that mean it the other
    way round, or sums, means and neighbourhoods that run over the padding, all show then. Outputs
    that are whole numbers or booleans must be the same to the bit, whatever the padding is, and
    prove nothing for the others.

    Args:
        spec: reconciled, with all inputs of the program in its order.
        tensors: what the program takes.
        call: runs it.
        rules: what the configuration says.
        device: where it runs.
        derive: whether to derive what is not declared.

    Raises:
        ConfigError: the declared fillings do not fit the program.
    """
    names = [tensor.name for tensor in spec.inputs]
    declared = with_ragged_inputs(spec, rules)
    pads = {tensor.name: tensor.pad for tensor in declared.inputs if tensor.pad is not None}
    pads |= {made.tensor.name: 0 for made in declared.made if made.making is Making.MASK}
    if pads:
        length = _declared_length(tensors, names, pads, rules)
        if _alike(call, tensors, length, [pads.get(name, 0) for name in names], device) is False:
            log.warning(
                "padding as declared changes the answers of the exported program, tried on random "
                "numbers: requests that ride together may influence each other"
            )
        return declared
    length = _derivable_length(spec, tensors) if derive and not rules.pads else None
    if length is None:
        return declared
    why_not = _against_padding(call, tensors, names, length, device)
    if why_not:
        log.info("requests of different lengths ride apart: padded with 0, %s", why_not)
        return declared
    log.info("requests of different lengths are padded with 0, and so are their masks")
    return replace(
        declared,
        inputs=tuple(
            replace(tensor, pad=0) if DYNAMIC in tensor.shape else tensor
            for tensor in declared.inputs
        ),
    )


def _against_padding(
    call: Call, tensors: ProgramTensors, names: Sequence[str], length: Any, device: str
) -> str:
    """Why masked padding with 0 cannot be taken to be harmless; empty where it can."""
    if not _alike(call, tensors, length, [0] * len(names), device):
        return "answers change (or random numbers are nothing that the program takes)"
    # The control: a trial in which padding would not show without the mask has shown nothing.
    unmasked = [1 if _named_mask(name) else 0 for name in names]
    if _alike(call, tensors, length, unmasked, device, floats_alone=True) is not False:
        return "answers stay the same, but without the mask they do so, too: that shows nothing"
    if not _choices_stay(call, tensors, length, device):
        return "whole numbers or booleans in the answers change"
    return ""


def _declared_length(
    tensors: ProgramTensors, names: Sequence[str], pads: Mapping[str, float], rules: RaggedRules
) -> Any:
    """Return the expression of the length that is padded.

    Raises ConfigError where the program has more than one such length, or the same one in tensors
    that are not padded or cannot be cut back.
    """
    own = dict(zip(names, map(_lengths, tensors.inputs), strict=True))
    first = next(name for name in names if name in pads)
    length = own[first][0]
    for name, lengths in own.items():
        if name in pads and lengths != [length]:
            raise ConfigError(
                f"{rules.locate(rules.path(name))}: padded inputs need one length, but for the "
                f"exported program that of '{name}' is another than that of '{first}'"
            )
        if name not in pads and any(length.free_symbols & other.free_symbols for other in lengths):
            raise ConfigError(
                f"{rules.locate(rules.path(first))}: '{name}' has the length of '{first}' in the "
                f'exported program; pad it too, with a parameter "pad:{name}"'
            )
    for output in tensors.outputs:
        if any(other != length for other in _lengths(output)):
            raise ConfigError(
                f"{rules.locate(rules.path(first))}: output '{output.name}' of the exported "
                f"program has a length other than that of '{first}', so it cannot be cut back to "
                "each request's own"
            )
    return length


def _derivable_length(spec: ModelSpec, tensors: ProgramTensors) -> Any:
    """Return the expression of the length that may be padded; None if there is no such."""
    if not spec.max_batch_size:
        return None
    masks = [position for position, tensor in enumerate(spec.inputs) if _named_mask(tensor.name)]
    if len(masks) != 1 or spec.inputs[masks[0]].shape != (DYNAMIC,):
        return None
    (length,) = _lengths(tensors.inputs[masks[0]])
    for tensor, program in zip(spec.inputs, tensors.inputs, strict=True):
        lengths = _lengths(program)
        open_to_requests = tensor.shape.count(DYNAMIC) == 1 and tensor.datatype != "BF16"
        if lengths and not (lengths == [length] and open_to_requests):
            return None
    alike = all(other == length for output in tensors.outputs for other in _lengths(output))
    return length if alike and length in tensors.lengths else None


def _named_mask(name: str) -> bool:
    return name == "mask" or name.endswith("_mask")


def _lengths(tensor: NamedTensor) -> list[Any]:
    """Return the expressions of its dynamic dimensions, but for the batch."""
    return [expression for dimension, expression in tensor.symbols() if dimension]


def _alike(
    call: Call,
    tensors: ProgramTensors,
    length: Any,
    pads: Sequence[float],
    device: str,
    *,
    floats_alone: bool = False,
) -> bool | None:
    """Try whether one row of random numbers gets the same answer padded; None if nothing shows.

    Masks are all ones before they are padded. That whole numbers and booleans stay tells nothing:
    the largest of several may stay the same while all change.
    """
    told = None
    for trial in range(TRIALS):
        own, longest = _lengths_to_try(tensors, length, 3 + 2 * trial)
        if longest <= own:
            return told
        row = _random_row(tensors, {length: own}, trial, device)
        answers = _answers(call, tensors, length, longest, row, pads)
        if answers is None:
            return None
        for answer, padded_answer in answers:
            if not answer.is_floating_point():
                if not floats_alone and not torch.equal(answer, padded_answer):
                    return False
            elif answer.isfinite().all():
                if not _close(answer, padded_answer):
                    return False
                told = True
    return told


def _choices_stay(call: Call, tensors: ProgramTensors, length: Any, device: str) -> bool:
    """Try whether masked padding leaves whole numbers and booleans alone, be it above or below
    everything else: a largest or smallest element that is chosen in it shows in one of the two."""
    for data, pad in ((0, 1), (1, 0)):
        own, longest = _lengths_to_try(tensors, length, 1)
        row = _random_row(tensors, {length: own}, 0, device)
        pads = []
        for index, tensor in enumerate(tensors.inputs):
            mask = _named_mask(tensor.name)
            pads.append(0 if mask else pad)
            if not mask:
                row[index] = torch.full_like(row[index], data)
        answers = _answers(call, tensors, length, longest, row, pads)
        if any(
            not answer.is_floating_point() and not torch.equal(answer, padded_answer)
            for answer, padded_answer in answers or ()
        ):
            return False
    return True


def _lengths_to_try(tensors: ProgramTensors, length: Any, wanted: int) -> tuple[int, int]:
    """The length of a row and the one that it is padded to, as near to what is wanted as the
    program takes them."""
    allowed = tensors.lengths.get(length)
    least, most = allowed.bounds if allowed else (0, DYNAMIC)
    own = max(least, wanted)
    return own, PADDING_FACTOR * own if most == DYNAMIC else min(most, PADDING_FACTOR * own)


def _answers(
    call: Call,
    tensors: ProgramTensors,
    length: Any,
    longest: int,
    row: Sequence[torch.Tensor],
    pads: Sequence[float],
) -> list[tuple[torch.Tensor, torch.Tensor]] | None:
    """Each output for one row, alone and then padded and cut back; None if the program raises,
    for which such numbers may be invalid."""
    axes = [_axes(named, length) for named in tensors.inputs]
    own = next(tensor.shape[found[0]] for tensor, found in zip(row, axes, strict=True) if found)
    filled = [
        _longer(tensor, found, longest - own, pad)
        for tensor, found, pad in zip(row, axes, pads, strict=True)
    ]
    try:
        with torch.inference_mode():
            alone, together = call(row), call(filled)
    except Exception:
        return None
    return [
        (answer, _shorter(padded_answer, _axes(named, length), own))
        for named, answer, padded_answer in zip(tensors.outputs, alone, together, strict=True)
    ]


def _random_row(
    tensors: ProgramTensors, lengths: Mapping[Any, int], seed: int, device: str
) -> list[torch.Tensor]:
    """Draw floats from [0, 1) and whole numbers from {0, 1}, which are indices into most tables."""
    generator = torch.Generator().manual_seed(seed)
    row = []
    for tensor, shape in zip(tensors.inputs, tensors.example_shapes(1, lengths), strict=True):
        if _named_mask(tensor.name):
            drawn = torch.ones(shape)
        elif tensor.dtype.is_floating_point:
            drawn = torch.rand(shape, generator=generator)
        else:
            drawn = torch.randint(0, 2, shape, generator=generator)
        row.append(drawn.to(device, tensor.dtype))
    return row


def _axes(tensor: NamedTensor, length: Any) -> list[int]:
    return [dimension for dimension, expression in tensor.symbols() if expression == length]


def _longer(tensor: torch.Tensor, axes: Sequence[int], more: int, pad: float) -> torch.Tensor:
    for axis in axes:
        shape = [*tensor.shape[:axis], more, *tensor.shape[axis + 1 :]]
        tensor = torch.cat([tensor, tensor.new_full(shape, pad)], axis)
    return tensor


def _shorter(tensor: torch.Tensor, axes: Sequence[int], own: int) -> torch.Tensor:
    for axis in axes:
        tensor = tensor.narrow(axis, 0, own)
    return tensor


def _close(answer: torch.Tensor, other: torch.Tensor) -> bool:
    tolerance = TOLERANCE.get(answer.dtype, HALF_TOLERANCE)
    largest = answer.abs().max().item() if answer.numel() else 0.0
    return answer.shape == other.shape and bool(
        ((answer - other).abs() <= tolerance * largest).all()
    )
