"""Runs one batch on a loaded model: raw memory in, raw memory out. Where torch meets the bytes.

Imported by workers (and by `InlineExecutor`) only: it needs torch.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from time import perf_counter_ns

import numpy as np
import torch

from headrace.tensors import DATATYPES, encode_tensor, split_byte_elements
from headrace_server.models.errors import ModelError, described
from headrace_server.models.loading import LoadedModel
from headrace_server.models.spec import DYNAMIC, TensorSpec
from headrace_server.models.torch_types import TORCH_DTYPES
from headrace_server.workers.frames import RowParameters, TensorPlace
from headrace_server.workers.slab import aligned

Tensor = torch.Tensor | np.ndarray

_NUMPY_DTYPES = {
    dtype: np.dtype(f"i{dtype.itemsize}")
    if dtype is torch.bfloat16
    else (np.dtype(np.uint8) if dtype is torch.bool else DATATYPES[name].numpy)
    for name, dtype in TORCH_DTYPES.items()
}
"""As what numpy looks at memory of each dtype: as integers of its width where it has none such, and
at booleans as bytes, since on the wire there are others than 0 and 1."""

CPU_IS_FULL = "DefaultCPUAllocator: can't allocate memory"


@dataclass(frozen=True, slots=True)
class RunTimes:
    """Nanoseconds spent reading inputs (copy to the device included), inferring, writing. What
    overlaps another batch counts here all the same."""

    input_ns: int
    infer_ns: int
    output_ns: int


class BatchRunner:
    """One loaded model on one device.

    `run`, for models on the CPU, reads inputs from the memory it is given without copying them,
    runs the model and writes each output once, into memory that the caller provides when its size
    is known. `PipelinedPath` takes the same three steps one by one.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._inputs = model.spec.model_inputs
        self._booleans = [tensor.name for tensor in self._inputs if tensor.datatype == "BOOL"]
        self._outputs = model.spec.outputs
        self._batched = model.spec.max_batch_size > 0

    def run(
        self,
        memory: memoryview,
        places: Sequence[TensorPlace],
        parameters: Sequence[RowParameters] | None,
        reserve: Callable[[int], memoryview],
    ) -> tuple[tuple[TensorPlace, ...], RunTimes]:
        """Run one batch.

        Args:
            memory: where the inputs lie.
            places: position in `ModelSpec.model_inputs`, offset, length and batched shape of
                each input.
            parameters: custom parameters of each request in turn, or None.
            reserve: called once with the bytes that all outputs need; returns where they go.

        Returns:
            Where each output lies in the reserved memory, and the times.

        Raises:
            ModelError: the model's answer does not fit its signature.
            Exception: whatever the model raises.
        """
        started = perf_counter_ns()
        inputs = self.views(memory, places)
        read = perf_counter_ns()
        outputs = self.infer(inputs, parameters)
        inferred = perf_counter_ns()
        written = self.write(outputs, places, reserve, _copy_here)
        return written, RunTimes(read - started, inferred - read, perf_counter_ns() - inferred)

    @property
    def overwrites_outputs(self) -> bool:
        """See `Program.overwrites_outputs`."""
        return self._model.program.overwrites_outputs

    def views(self, memory: memoryview, places: Sequence[TensorPlace]) -> dict[str, Tensor]:
        """The inputs where they lie, by name; booleans still as the bytes that came."""
        return {self._inputs[place.position].name: self._view(memory, place) for place in places}

    def infer(
        self, inputs: Mapping[str, Tensor], parameters: Sequence[RowParameters] | None
    ) -> Mapping[str, Tensor]:
        """The outputs by name, from `views` or copies of them on the model's device.

        Raises:
            ModelError: the model's answer does not fit its signature.
            Exception: whatever the model raises.
        """
        if self._booleans:
            # On the wire any byte but 0 is true; torch takes 0 and 1 only.
            converted = {name: inputs[name] != 0 for name in self._booleans if name in inputs}
            inputs = {**inputs, **converted}
        each = None
        if parameters is not None:
            each = [request.values for request in parameters for _ in range(request.rows)]
        return self._model.run(inputs, each)

    def ran_out_of_memory(self, error: Exception) -> bool:
        """Whether `run` failed for want of memory, so that a smaller batch may succeed. What the
        failed one left behind is given back to the device."""
        # On CPU torch has no exception of its own for that.
        on_cpu = isinstance(error, RuntimeError) and CPU_IS_FULL in described(error)
        if not on_cpu and not isinstance(error, MemoryError | torch.OutOfMemoryError):
            return False
        traceback.clear_frames(error.__traceback__)
        torch.cuda.empty_cache()  # does nothing where no GPU is in use
        return True

    def _view(self, memory: memoryview, place: TensorPlace) -> Tensor:
        spec = self._inputs[place.position]
        if spec.datatype == "BYTES":
            count = int(np.prod(place.shape))
            elements = np.empty(count, dtype=object)
            data = memory[place.offset : place.offset + place.nbytes]
            elements[:] = split_byte_elements(data, count)
            return elements.reshape(place.shape)
        dtype = TORCH_DTYPES[spec.datatype]
        if place.nbytes == 0:
            return torch.empty(place.shape, dtype=dtype)
        # numpy gives memory a type and a shape in a third of the time that torch takes.
        array = np.frombuffer(
            memory, _NUMPY_DTYPES[dtype], place.nbytes // dtype.itemsize, place.offset
        )
        tensor = torch.from_numpy(array.reshape(place.shape))
        return tensor.view(dtype) if dtype is torch.bfloat16 else tensor

    def write(
        self,
        outputs: Mapping[str, Tensor],
        inputs: Sequence[TensorPlace],
        reserve: Callable[[int], memoryview],
        copy_out: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> tuple[TensorPlace, ...]:
        """Write outputs into the memory that `reserve` gives; returns where each one lies there.

        `copy_out` copies those that lie on another device (or lets that be done) into the tensor
        of the same dtype and shape that it is given. Raises `ModelError`.
        """
        places, contents = [], []
        offset = 0
        for position, spec in enumerate(self._outputs):
            value = _readable(outputs[spec.name], self._batched)
            place = TensorPlace(position, offset, value.nbytes, tuple(value.shape))
            if isinstance(value, _Encoded):
                place.row_offsets = value.row_offsets
            if spec.shaped_like:
                self._deal_out(place, spec, inputs)
            offset = aligned(offset + place.nbytes)
            places.append(place)
            contents.append(value)
        memory = reserve(offset)
        for place, value in zip(places, contents, strict=True):
            if place.nbytes:
                _copy(value, memory, place.offset, copy_out)
        return tuple(places)

    def _deal_out(
        self, output: TensorPlace, spec: TensorSpec, inputs: Sequence[TensorPlace]
    ) -> None:
        """Give each row its share of an output: its own dimensions where they are dynamic."""
        source = next(p for p in inputs if self._inputs[p.position].name == spec.shaped_like)
        rows = source.row_shapes or (source.shape[1:],) * source.shape[0]
        shapes = tuple(
            tuple(row[axis] if dim == DYNAMIC else dim for axis, dim in enumerate(spec.shape))
            for row in rows
        )
        expected, got = sum(map(math.prod, shapes)), math.prod(output.shape)
        if got != expected:
            raise ModelError(
                f"output '{spec.name}': expected {expected} elements in all, as "
                f"'{spec.shaped_like}' has it, got the shape {list(output.shape)}"
            )
        if len(set(shapes)) == 1:
            output.shape = (len(shapes), *shapes[0])
        else:
            output.row_shapes = shapes


@dataclass(frozen=True, slots=True)
class _Encoded:
    """BYTES, as they travel; `row_offsets` says where each row begins, if there are rows."""

    data: bytes
    shape: tuple[int, ...]
    row_offsets: tuple[int, ...] | None

    @property
    def nbytes(self) -> int:
        return len(self.data)


def _readable(value: Tensor, batched: bool) -> np.ndarray | torch.Tensor | _Encoded:
    """An output as it can be copied: memory that numpy reads where it lies, a tensor on another
    device, or encoded BYTES."""
    if isinstance(value, torch.Tensor):
        if value.dtype is torch.bfloat16:
            value = value.view(torch.int16)  # only its width matters to who copies it
        return value.numpy(force=True) if value.is_cpu else value
    if not batched:
        return _Encoded(encode_tensor(value, "BYTES"), value.shape, None)
    rows = [encode_tensor(row, "BYTES") for row in value.reshape(len(value), -1)]
    offsets = (0, *accumulate(len(row) for row in rows))
    return _Encoded(b"".join(rows), value.shape, offsets)


def _copy(
    value: np.ndarray | torch.Tensor | _Encoded,
    memory: memoryview,
    offset: int,
    copy_out: Callable[[torch.Tensor, torch.Tensor], None],
) -> None:
    """Write a value into this memory, in row-major order."""
    if isinstance(value, np.ndarray):
        np.frombuffer(memory, value.dtype, value.size, offset).reshape(value.shape)[...] = value
    elif isinstance(value, _Encoded):
        memory[offset : offset + value.nbytes] = value.data
    else:
        count = value.numel()
        target = torch.frombuffer(memory, dtype=value.dtype, count=count, offset=offset)
        copy_out(value, target.view(value.shape))


def _copy_here(value: torch.Tensor, target: torch.Tensor) -> None:
    target.copy_(value)
