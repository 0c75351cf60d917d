"""`headrace infer`: sends one request and prints its answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.text import Text

from headrace.access import Access
from headrace.answers import ModelMetadata
from headrace_server.cli.connection import connected
from headrace_server.cli.output import print_json, result_console, table
from headrace_server.cli.values import read_inputs

MAX_SHOWN_ELEMENTS = 24
SHOWN_DIGITS = 6

Array = npt.NDArray[Any]


def infer(
    model: str,
    rows: Sequence[str],
    named: Sequence[str],
    json_input: str | None,
    *,
    zeros: bool,
    version: str,
    address: str,
    access: Access,
    timeout: float,
    as_json: bool,
) -> None:
    """Send one request made of `values.read_inputs`; `timeout` is in seconds.

    Raises:
        CommandError: a value does not fit its input, or the call fails.
    """
    with connected(address, timeout, access) as client:
        metadata = client.model_metadata(model, version)
        inputs = read_inputs(metadata, rows, named, json_input, zeros=zeros)
        outputs = client.infer(model, inputs, version=version)
    if as_json:
        print_json({name: _plain(array) for name, array in outputs.items()})
    else:
        _print(outputs, metadata)


def _print(outputs: Mapping[str, Array], metadata: ModelMetadata) -> None:
    datatypes = {tensor.name: tensor.datatype for tensor in metadata.outputs}
    answers = table("output", "datatype", "shape", "values")
    for name, array in outputs.items():
        shape = str(list(array.shape))
        answers.add_row(Text(name), datatypes.get(name, ""), Text(shape), Text(abbreviated(array)))
    result_console().print(answers)


def abbreviated(array: Array) -> str:
    """The array as numpy writes it, long ones with an ellipsis; BYTES as text."""
    if array.dtype == object:
        array = np.array(_plain(array), dtype=object).reshape(array.shape)
    return np.array2string(
        array, threshold=MAX_SHOWN_ELEMENTS, precision=SHOWN_DIGITS, separator=", "
    )


def _plain(array: Array) -> Any:
    """Nested lists of numbers and text; bytes that are not UTF-8 appear as escapes, and numbers
    that are none in JSON by the names that protobuf's mapping gives them."""
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        named = array.astype(object)
        named[np.isnan(array)] = "NaN"
        named[np.isposinf(array)] = "Infinity"
        named[np.isneginf(array)] = "-Infinity"
        return named.tolist()
    if array.dtype != object:
        return array.tolist()
    texts = [_text(element) for element in array.ravel().tolist()]
    return np.array([*texts, None], dtype=object)[:-1].reshape(array.shape).tolist()


def _text(element: bytes) -> str:
    return element.decode(errors="backslashreplace")
