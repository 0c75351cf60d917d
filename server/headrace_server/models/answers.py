"""Turns what a model returns into its declared outputs, or says what is wrong with it.

Workers only: imports torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from headrace_server.models.errors import ModelError
from headrace_server.models.program import BytesArray, Tensor
from headrace_server.models.spec import DYNAMIC, ModelSpec, TensorSpec
from headrace_server.models.torch_types import DATATYPE_OF, TORCH_DTYPES


def checked_outputs(spec: ModelSpec, answer: object, rows: int | None) -> dict[str, Tensor]:
    """Return every declared output of ``answer`` by name, in the order of ``spec``.

    Args:
        spec: the signature to hold the answer against.
        answer: a mapping by name, a tuple or list in the order of the outputs, or the only output.
        rows: the rows of the batch; None where there is no batch dimension.

    Raises:
        ModelError: an output is missing, undeclared, or has another datatype or shape.
    """
    return {
        output.name: _checked(output, value, rows)
        for output, value in zip(spec.outputs, _in_order(spec.outputs, answer), strict=True)
    }


def _in_order(outputs: Sequence[TensorSpec], answer: object) -> Sequence[object]:
    if isinstance(answer, tuple) and len(answer) == len(outputs):
        return answer
    names = [output.name for output in outputs]
    if isinstance(answer, Mapping):
        if answer.keys() != set(names):
            raise ModelError(f"expected the outputs {names}, got {list(answer)}")
        return [answer[name] for name in names]
    if isinstance(answer, tuple) or (
        isinstance(answer, list) and not _is_bytes_value(outputs, answer)
    ):
        if len(answer) != len(outputs):
            raise ModelError(f"expected {len(outputs)} outputs {names}, got {len(answer)}")
        return answer
    if len(outputs) != 1:
        raise ModelError(f"expected {len(outputs)} outputs {names}, got one {_kind(answer)}")
    return [answer]


def _is_bytes_value(outputs: Sequence[TensorSpec], answer: list[Any]) -> bool:
    """Say whether a list is the value of the only output rather than a list of outputs."""
    if len(outputs) != 1 or outputs[0].datatype != "BYTES":
        return False
    return not (len(answer) == 1 and isinstance(answer[0], np.ndarray))


def _checked(output: TensorSpec, value: object, rows: int | None) -> Tensor:
    checked = _bytes(output, value) if output.datatype == "BYTES" else _tensor(output, value)
    if output.shaped_like:
        return checked  # the elements of all rows, in whatever shape
    expected = tuple(output.shape) if rows is None else (rows, *output.shape)
    got = tuple(checked.shape)
    if got == expected:
        return checked
    if len(got) != len(expected) or any(
        want not in (DYNAMIC, have) for want, have in zip(expected, got, strict=True)
    ):
        raise ModelError(
            f"output '{output.name}': expected shape {list(expected)}, got {list(got)}"
        )
    return checked


def _tensor(output: TensorSpec, value: object) -> torch.Tensor:
    tensor = _from_numpy(output, value) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, torch.Tensor):
        raise ModelError(f"output '{output.name}': expected a tensor, got {_kind(value)}")
    if tensor.dtype != TORCH_DTYPES[output.datatype]:
        got = DATATYPE_OF.get(tensor.dtype, str(tensor.dtype))
        raise ModelError(f"output '{output.name}': expected {output.datatype}, got {got}")
    return tensor


def _from_numpy(output: TensorSpec, array: npt.NDArray[Any]) -> torch.Tensor:
    try:
        # torch wants native byte order, no negative strides, and memory it may write to.
        return torch.from_numpy(
            np.require(array, array.dtype.newbyteorder("="), requirements=["C", "W"])
        )
    except TypeError:
        raise ModelError(
            f"output '{output.name}': expected {output.datatype}, got numpy {array.dtype}"
        ) from None


def _bytes(output: TensorSpec, value: object) -> BytesArray:
    if isinstance(value, torch.Tensor) or not isinstance(value, np.ndarray | list | tuple):
        raise ModelError(
            f"output '{output.name}': expected a list or array of bytes, got {_kind(value)}"
        )
    try:
        array = np.asarray(value, dtype=object)
    except ValueError:
        raise ModelError(f"output '{output.name}': its lists differ in length") from None
    encoded = np.empty(array.size, dtype=object)
    encoded[:] = [_encoded(output, element) for element in array.reshape(-1)]
    return encoded.reshape(array.shape)


def _encoded(output: TensorSpec, element: object) -> bytes:
    if isinstance(element, str):
        return element.encode()
    if isinstance(element, bytes):
        return bytes(element)
    raise ModelError(f"output '{output.name}': expected bytes or str, got {_kind(element)}")


def _kind(value: object) -> str:
    return type(value).__name__
