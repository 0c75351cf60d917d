"""From what is typed on a command line to the arrays of a request."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.answers import ModelMetadata, TensorMetadata
from headrace.tensors import DATATYPES, TensorError, array_of
from headrace_server.cli.errors import USAGE, CommandError

Array = npt.NDArray[Any]
Inputs = dict[str, Array | list[Any]]

STANDARD_INPUT = "-"


def read_inputs(
    metadata: ModelMetadata,
    rows: Sequence[str],
    named: Sequence[str],
    json_input: str | None,
    *,
    zeros: bool,
) -> Inputs:
    """All inputs of one request, ready for `Client.infer`.

    Args:
        metadata: signature of the model.
        rows: values that are rows of the model's only input.
        named: `NAME=VALUE`, each a whole input; goes before what `json_input` says.
        json_input: file with a JSON object from names to nested lists; "-" is standard input.
        zeros: whether inputs that are not given are filled with zeros.

    Raises:
        CommandError: something is no value of its input, or an input is given twice; the text
            says which.
    """
    tensors = {tensor.name: tensor for tensor in metadata.inputs}
    arrays: dict[str, Array] = {}
    given: set[str] = set()
    if json_input is not None:
        for name, value in _read_object(json_input).items():
            tensor = known_input(name, tensors, metadata.name)
            arrays[name] = in_shape(checked_array(value, tensor), tensor)
    for item in named:
        name, separator, text = item.partition("=")
        if not separator:
            raise CommandError(f"expected --input NAME=VALUE, got '{item}'", USAGE)
        if name in given:
            raise CommandError(f"expected one --input {name}=VALUE, got several", USAGE)
        given.add(name)
        tensor = known_input(name, tensors, metadata.name)
        arrays[name] = in_shape(parse_value(text, tensor), tensor)
    if rows:
        tensor = _only_input(metadata)
        if tensor.name in arrays:
            way = "--input" if tensor.name in given else "--json-input"
            raise CommandError(
                f"expected input '{tensor.name}' once, got it as VALUE and by {way}", USAGE
            )
        arrays[tensor.name] = stack_rows([parse_value(row, tensor) for row in rows], tensor)
    if zeros:
        for name, tensor in tensors.items():
            if name not in arrays:
                arrays[name] = zeros_for(tensor)
    return {name: _sendable(array, tensors[name]) for name, array in arrays.items()}


def parse_value(text: str, tensor: TensorMetadata) -> Array:
    """The array that one VALUE stands for, of the input's datatype.

    `@FILE` is read from a file; everything else is one text for a BYTES input, JSON for others.
    """
    if text.startswith("@"):
        return _read_file(Path(text[1:]), tensor)
    if tensor.datatype == "BYTES":
        # What the shell passed, byte for byte, valid text or not.
        return np.array(os.fsencode(text), dtype=object)
    return checked_array(parse_json(text, f"input '{tensor.name}' ({tensor.datatype})"), tensor)


def stack_rows(rows: Sequence[Array], tensor: TensorMetadata) -> Array:
    """One array [rows, ...] from arrays that each hold one row of the input.

    A value that already has the batch dimension counts for as many rows as it has. The first
    dimension of the input is taken for the batch dimension if it may vary; otherwise the model
    has none, and there can be only one value.
    """
    shape = tensor.shape
    if not shape or shape[0] >= 0:
        if len(rows) > 1:
            raise CommandError(
                f"input '{tensor.name}' has no batch dimension: expected one VALUE, "
                f"got {len(rows)}",
                USAGE,
            )
        return in_shape(rows[0], tensor)
    try:
        return np.concatenate([_with_leading_ones(row, len(shape)) for row in rows])
    except ValueError:
        shapes = ", ".join(dict.fromkeys(str(list(row.shape)) for row in rows))
        raise CommandError(
            f"expected rows of equal shapes for input '{tensor.name}', got {shapes}", USAGE
        ) from None


def zeros_for(tensor: TensorMetadata) -> Array:
    """Zeros, or empty text, in the input's shape with dynamic dimensions of 1."""
    shape = tuple(max(1, dimension) if dimension < 0 else dimension for dimension in tensor.shape)
    if tensor.datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, dtype=_dtype(tensor))


def in_shape(array: Array, tensor: TensorMetadata) -> Array:
    """The array with the leading dimensions of 1 that were left out."""
    return _with_leading_ones(array, len(tensor.shape))


def _with_leading_ones(array: Array, dimensions: int) -> Array:
    # What does not fit otherwise goes out as it is: the server says best what it expects.
    return array.reshape((1,) * (dimensions - array.ndim) + array.shape)


def checked_array(value: object, tensor: TensorMetadata) -> Array:
    """Parsed JSON as an array of the input's datatype.

    Raises:
        CommandError: it has other elements, or uneven rows.
    """
    try:
        array = array_of(value, tensor.datatype)
    except TensorError as error:
        raise CommandError(f"input '{tensor.name}': {error}", USAGE) from None
    if tensor.datatype == "BYTES" and not all(isinstance(v, str) for v in array.ravel().tolist()):
        raise CommandError(f"input '{tensor.name}': expected text in even rows", USAGE)
    return array


def _dtype(tensor: TensorMetadata) -> npt.DTypeLike:
    known = DATATYPES[tensor.datatype].numpy
    return np.float32 if known is None else known


def _sendable(array: Array, tensor: TensorMetadata) -> Array | list[Any]:
    # numpy has no BF16: the SDK makes one of plain numbers, from the model's metadata.
    if tensor.datatype == "BF16" and array.ndim:
        numbers: list[Any] = array.tolist()
        return numbers
    return array


def _read_file(file: Path, tensor: TensorMetadata) -> Array:
    try:
        match file.suffix:
            case ".npy":
                with loading(file), file.open("rb") as opened:
                    array: Array = np.lib.format.read_array(opened, allow_pickle=False)
                return array
            case ".json":
                return checked_array(parse_json(file.read_text(), str(file)), tensor)
            case ".txt" if tensor.datatype == "BYTES":
                return np.array(file.read_bytes().removesuffix(b"\n"), dtype=object)
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"cannot read {file}: {error}") from None
    kinds = ".npy, .json or .txt" if tensor.datatype == "BYTES" else ".npy or .json"
    raise CommandError(
        f"input '{tensor.name}' is {tensor.datatype}: expected a file that ends in {kinds}, "
        f"got {file}",
        USAGE,
    )


@contextmanager
def loading(file: Path) -> Iterator[None]:
    """The block has numpy load a file; whatever goes wrong ends the command with one line."""
    try:
        yield
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror or error}") from None
    except Exception as error:  # ten kinds at least, of numpy, zipfile, zlib, ast and tokenize
        reason = shorten(str(error), 200) or type(error).__name__
        raise CommandError(f"cannot read {file}: {reason}") from None


def _read_object(source: str) -> Mapping[str, object]:
    try:
        text = sys.stdin.read() if source == STANDARD_INPUT else Path(source).read_text()
    except OSError as error:
        raise CommandError(f"cannot read {source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"cannot read {source}: {error}") from None
    value = parse_json(text, source)
    if not isinstance(value, dict):
        raise CommandError(
            f"{source}: expected a JSON object from input names to values, "
            f"got {type(value).__name__}",
            USAGE,
        )
    return value


def parse_json(text: str, what: str) -> object:
    """The value of a JSON text; `what` names it in the error.

    Raises:
        CommandError: it is none.
    """
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        shown = text if len(text) <= 40 else text[:39] + "…"
        raise CommandError(f"{what}: expected JSON, got {shown!r}: {error}", USAGE) from None
    return value


def known_input(name: str, tensors: Mapping[str, TensorMetadata], model: str) -> TensorMetadata:
    """The model's input of that name.

    Raises:
        CommandError: it has none.
    """
    tensor = tensors.get(name)
    if tensor is None:
        raise CommandError(
            f"model '{model}' has no input '{name}'; it takes {', '.join(tensors)}", USAGE
        )
    return tensor


def _only_input(metadata: ModelMetadata) -> TensorMetadata:
    if len(metadata.inputs) == 1:
        return metadata.inputs[0]
    names = ", ".join(tensor.name for tensor in metadata.inputs)
    raise CommandError(
        f"model '{metadata.name}' takes several inputs ({names}): use --input NAME=VALUE", USAGE
    )
